"""Memory that the program keeps: freed blocks stay with the process, unless the environment says otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pathlib import Path
from unbackdoor_cli.allocation import keep_freed_memory
def megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
print(keep_freed_memory() if sys.argv[1] == "kept" else None)
before = megabytes()
block = b"1" * (256 * 2**20)
del block
print(megabytes() - before)
"""


def held(how: str, **environment: str) -> tuple[str, float]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True, env=known | environment
    )
    told, size = run.stdout.split()
    return told, float(size)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_freed_blocks_stay_with_the_process() -> None:
    told, size = held("kept")
    assert told == "True"
    assert size > 200
    assert held("as it comes")[1] < 50
    assert held("kept", MALLOC_TRIM_THRESHOLD_="131072") == ("False", pytest.approx(0, abs=50))
    assert held("kept", GLIBC_TUNABLES="glibc.malloc.trim_threshold=131072")[0] == "False"


def test_the_program_keeps_memory_and_the_library_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from unbackdoor_cli import main as program

    calls: list[str] = []
    monkeypatch.setattr(program, "keep_freed_memory", lambda: calls.append("kept"))
    monkeypatch.setattr(sys, "argv", ["unbackdoor", "--version"])
    with pytest.raises(SystemExit):
        program.run()
    assert calls == ["kept"]
    program.main(["--version"])
    assert calls == ["kept"]
