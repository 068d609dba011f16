"""Peak memory of a piece of work, where the machine tells."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["Peak", "peak_of_process"]

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Peak:
    """``bytes`` is what the process needed beyond what it held before, or None where nobody can tell."""

    bytes: int | None = None


@contextmanager
def peak_of_process() -> Iterator[Peak]:
    """Measure the resident memory of this process inside the block; Linux alone can reset its high-water mark."""
    peak = Peak()
    _give_back()
    try:
        _RESET.write_text("5", encoding="ascii")
        before = _kilobytes("VmRSS")
    except (OSError, ValueError):
        yield peak
        return
    yield peak
    peak.bytes = 1024 * max(0, _kilobytes("VmHWM") - before)


def _give_back() -> None:
    """Return freed memory to the system, so that what an earlier piece of work left does not hide this one's need."""
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def _kilobytes(name: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"no {name} in {_STATUS}")
