"""What this process does while a hostile thing is opened, as the interpreter's audit events tell it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["watched"]

_FORBIDDEN = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "subprocess.Popen",
    "os.system",
    "os.exec",
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_watching: list[tuple[str, list[str]]] = []
_hooked: list[bool] = []
_TEMPORARY = tempfile.gettempdir()  # asked beforehand: asking writes a file, which the hook would hear of


@contextmanager
def watched(outside: Path) -> Iterator[list[str]]:
    """Collects what must not happen: connections, commands, files written beyond the temporary folder, and any file
    of ``outside`` that is opened. It only listens, so that what is tested fails by itself."""
    if not _hooked:
        sys.addaudithook(_hook)  # hooks cannot be taken away, so there is one for all
        _hooked.append(True)
    found: list[str] = []
    entry = (str(outside), found)
    _watching.append(entry)
    try:
        yield found
    finally:
        _watching.remove(entry)


def _hook(event: str, given: tuple[object, ...]) -> None:
    if not _watching:
        return
    if event == "open":
        _opened(given)
    elif event in _FORBIDDEN and given[:1] != ("uname",):  # Python's own `platform` asks it for the processor
        for _, found in _watching:
            found.append(f"{event} {given[:2]!r:.200}")


def _opened(given: tuple[object, ...]) -> None:
    path, _, flags = given
    if isinstance(path, int) or path is None:
        return
    name = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]  # noqa: PTH100 - links are not followed
    writes = isinstance(flags, int) and bool(flags & _WRITES)
    for outside, found in _watching:
        if name.startswith(outside):
            found.append(f"open {name}")
        elif writes and not name.startswith((_TEMPORARY, "/dev/null")) and "__pycache__" not in name:
            found.append(f"write {name}")
