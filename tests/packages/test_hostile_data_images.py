"""Images and label rows that nobody vouches for: an error of ours or nothing, soon, and nothing else happens."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
from hostile.data_images import hostile_data_images
from hostile.samples import HostileData
from hostile.watching import watched

from unbackdoor.errors import UnbackdoorError
from unbackdoor.files.reading import limited
from unbackdoor.registry import kit

CASES = list(hostile_data_images())
SECONDS = 5
MEMORY = 2**30


def test_corpus_is_large() -> None:
    assert len(CASES) >= 100
    assert len({(case.task, case.name) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.task}: {case.name}" for case in CASES])
def test_hostile_images_end_soon_in_an_error_of_ours(
    case: HostileData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("outside", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("a secret")
    source = case.build(tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    before, peak = set(tmp_path.rglob("*")), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun, said = time.process_time(), ""
    with watched(tmp_path / "outside") as did, limited(text=2**22, memory=2**29):
        try:
            kit(case.task).load_clean(source, size=8, **case.options)
        except UnbackdoorError as error:
            said = str(error)
    assert time.process_time() - begun < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEMORY // 1024
    assert did == []
    assert set(tmp_path.rglob("*")) == before
    assert said or case.harmless, "it was read"
    assert said.isprintable()
    assert len(said) < 900
