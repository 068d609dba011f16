"""The program runs no file of the folder that it is called in, and what it starts ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOY = Path(__file__).parent / "toy"
UNBACKDOOR = Path(sys.executable).with_name("unbackdoor")
SHADOWED = ("multiprocessing", "torch", "numpy", "random", "sitecustomize", "unbackdoor", "typer", "rich", "json")
EARLY = ("__future__", "contextlib", "unbackdoor_cli", "warnings", "signal")
"""What ``python -m`` itself needs before the program can say a word."""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose files leave a trace when they run."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    shadow(folder, SHADOWED, tmp_path / "trace")
    return folder


def shadow(folder: Path, names: tuple[str, ...], trace: Path) -> None:
    for name in names:
        (folder / f"{name}.py").write_text(f"open({str(trace)!r}, 'a').write('{name} ')\n")


@pytest.mark.parametrize(
    "program",
    [[sys.executable, "-m", "unbackdoor_cli"], pytest.param([UNBACKDOOR], marks=pytest.mark.slow)],
    ids=["module", "program"],
)
def test_program_runs_nothing_of_the_current_folder(hostile, tmp_path, program):
    if program == [UNBACKDOOR]:
        if not UNBACKDOOR.exists():
            pytest.skip("the program is not installed here")
        shadow(hostile, EARLY, tmp_path / "trace")
    done = subprocess.run([*program, "list", "tasks"], cwd=hostile, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "trace").exists()


def test_closed_streams_are_taken_by_no_file(tmp_path):
    """What is printed to a closed stream must not end up in the next file that is opened."""
    program = "import os; from unbackdoor_cli.console import prepare; prepare(); print(os.open('file', os.O_CREAT))"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -P -c "{program}" 2>&-'], cwd=tmp_path, capture_output=True, text=True
    )
    assert int(done.stdout) > 2


def children(process: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == process and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("command", ["demo", "compare"])
def test_ended_program_leaves_no_worker_and_no_folder(hostile, tmp_path, command, number, victim):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(TOY), "TMPDIR": str(scratch)}
    methods = "ft,nft,f-fip,bn-only"
    words = {
        "demo": ["demo", "--task", "toy", "--methods", methods, "--jobs", "2"],
        "compare": ["compare", victim, "--methods", methods, "--engine", "processes", "--workers", "2", "--seeds", "9"],
    }[command]
    program = [sys.executable, "-m", "unbackdoor_cli", *map(str, words)]
    with subprocess.Popen(program, cwd=hostile, env=environment, stderr=subprocess.PIPE, text=True) as run:
        while len(children(run.pid)) < 3 and run.poll() is None:  # two workers and the tracker of semaphores
            time.sleep(0.02)
        workers = children(run.pid)
        assert len(workers) >= 3
        run.send_signal(number)
        code = run.wait(timeout=120)
        said = run.stderr.read()
    assert code == (143 if number == signal.SIGTERM else -9)
    end = time.monotonic() + 120
    while any(Path(f"/proc/{worker}/stat").exists() for worker in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}/stat").exists() for worker in workers)
    if number == signal.SIGTERM:
        assert said.endswith("ended by SIGTERM; nothing half-written was left\n")
        assert said.count("Traceback") == 0
        assert list(scratch.iterdir()) == []
    again = subprocess.run([*program[:3], "list", "tasks"], cwd=hostile, env=environment, capture_output=True)
    assert again.returncode == 0
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "trace").exists()
