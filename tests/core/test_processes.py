"""Workers end with their parent, however it dies, and run nothing that lies in the current folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unbackdoor.processes import safe_path

SHADOWED = (
    "multiprocessing",
    "torch",
    "numpy",
    "random",
    "sitecustomize",
    "unbackdoor",
    "concurrent",
    "runpy",
    "typer",
)
PARENT = """
import os, sys, time
sys.path = [place for place in sys.path if place not in ("", os.getcwd())]
from unbackdoor.processes import Workers

if __name__ == "__main__":
    workers = Workers(1)
    print(workers.submit(os.getpid).result(), flush=True)
    workers.submit(time.sleep, 60)
    time.sleep(60)
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose files leave a trace when they run."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in SHADOWED:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'a').write('{name} ')\n")
    return folder


def alive(process: int) -> bool:
    """Whether it runs; one that has ended and that nobody has asked for does not."""
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def ends(process: int, within: float) -> bool:
    end = time.monotonic() + within
    while alive(process) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(process)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_workers_of_a_killed_parent_end_and_ran_nothing_of_the_current_folder(hostile, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], cwd=hostile, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert alive(worker)
        parent.send_signal(signal.SIGKILL)
        assert ends(worker, within=20)
    assert not (tmp_path / "trace").exists()


def test_safe_path_is_as_it_was_afterwards(monkeypatch):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with safe_path():
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert "PYTHONSAFEPATH" not in os.environ
    monkeypatch.setenv("PYTHONSAFEPATH", "yes")
    with safe_path():
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert os.environ["PYTHONSAFEPATH"] == "yes"


@pytest.mark.slow
def test_process_ends_with_another(tmp_path):
    """As a job does that a scheduler of this machine has started, with no pipe to its parent."""
    program = "from unbackdoor.processes import end_with; import time, sys; end_with(int(sys.argv[1])); time.sleep(60)"
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other,
        subprocess.Popen([sys.executable, "-P", "-c", program, str(other.pid)], cwd=tmp_path) as bound,
    ):
        other.kill()
        other.wait()
        assert bound.wait(timeout=120) == 1
