"""Clips, clouds and sentences that nobody vouches for: an error of ours or nothing, soon, and nothing else happens."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile.data_others import hostile_data_others
from hostile.samples import HostileData
from hostile.watching import watched

from unbackdoor.errors import UnbackdoorError
from unbackdoor.files.reading import limited
from unbackdoor.registry import kit

SECONDS = 10
MEMORY = 2**30


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


PORT = free_port()
CASES = list(hostile_data_others(f"127.0.0.1:{PORT}"))


@pytest.fixture(scope="module")
def listener() -> Iterator[list[str]]:
    """Who connected to `PORT`."""
    met: list[str] = []
    with socket.create_server(("127.0.0.1", PORT)) as server:

        def wait() -> None:
            while True:
                try:
                    other, whence = server.accept()
                except OSError:
                    return
                met.append(str(whence))
                other.close()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        yield met
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_corpus_is_large():
    assert len(CASES) >= 150
    assert len({(case.task, case.name) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.task}: {case.name}" for case in CASES])
def test_hostile_samples_end_soon_in_an_error_of_ours(case: HostileData, tmp_path, monkeypatch, listener):
    for name in ("outside", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("0 0 0\n" * 9)
    source = case.build(tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    before, peak = names_below(tmp_path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun, said = time.thread_time(), ""
    with watched(tmp_path / "outside") as did, limited(text=2**22, memory=2**29):
        try:
            kit(case.task).load_clean(source, **case.options)
        except UnbackdoorError as error:
            said = str(error)
    assert time.thread_time() - begun < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEMORY // 1024
    assert did == []
    assert listener == []
    assert names_below(tmp_path) == before
    assert said or case.harmless, "it was read"
    assert said.isprintable() or not said
    assert len(said) < 900


def names_below(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*")}
