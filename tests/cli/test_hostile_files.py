"""Hostile checkpoints and samples through every command: refused in a line or read harmlessly, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hostile.data_images import hostile_data_images
from hostile.data_others import hostile_data_others
from hostile.entrances import checkpoint_ways, data_ways, faults, tried
from hostile.pickles import hostile_pickles
from hostile.pictures import encoded
from hostile.samples import HostileData
from hostile.traps import RAN, lay, seen, traces
from hostile.victims import honest

PICKLES = [name for name, _ in hostile_pickles(Path(RAN))]
SAMPLES = [*hostile_data_images(), *hostile_data_others()]


def some(cases: Sequence[Any], every: int, name: Any) -> list[Any]:
    """All cases, of which one in ``every`` is tried by default: readers have tests of their own for all of them."""
    return [
        pytest.param(case, id=name(case), marks=[pytest.mark.slow] * (number % every > 0))
        for number, case in enumerate(cases)
    ]


@pytest.fixture(scope="module")
def honest_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of every kit's demo, and ``photos`` with two classes."""
    from unbackdoor import save
    from unbackdoor_image import KIT

    place = tmp_path_factory.mktemp("honest")
    save(KIT.build("smallcnn", num_classes=2), place / "given.safetensors")
    for label in ("cat", "dog"):
        folder = place / "photos" / label
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{number}.png").write_bytes(encoded())
    return place


@pytest.mark.parametrize("name", some(PICKLES, 10, str))
def test_hostile_checkpoint_is_refused_by_every_way_in(
    name: str, honest_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lay(tmp_path)
    path = tmp_path / "here" / "model.pt"
    path.write_bytes(dict(hostile_pickles(tmp_path / RAN))[name])
    before, out = seen(tmp_path), tmp_path_factory.mktemp("out")
    given = honest_folder / "given.safetensors"
    outcomes = tried(partial(checkpoint_ways, path, out, honest_folder / "photos", given), tmp_path)
    assert len(outcomes) == 5
    assert faults(outcomes) == []
    assert traces(tmp_path, before) == []
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("case", some(SAMPLES, 40, lambda case: f"{case.task}: {case.name}"))
def test_hostile_samples_harm_nothing_by_any_way_in(
    case: HostileData, honest_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    given = honest_folder / f"{case.task}.safetensors"
    if not given.exists():
        given.write_bytes(honest(case.task).files["model.safetensors"])
    for name in ("outside", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("0 0 0\n" * 9)
    source = case.build(tmp_path)
    before, out = seen(tmp_path), tmp_path_factory.mktemp("out")
    outcomes = tried(partial(data_ways, source, case.options, case.task, out, given), tmp_path)
    assert len(outcomes) == 4
    assert faults(outcomes, codes=(0, 2, 3) if case.harmless else (2,)) == []
    assert traces(tmp_path, before) == []
