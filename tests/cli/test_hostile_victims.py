"""Hostile victims' folders through every command: all refused in a line, nothing run, reached or written outside."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from hostile.cards import hostile_cards
from hostile.entrances import faults, tried, victim_ways
from hostile.traps import seen, traces

CARDS = dict(hostile_cards())


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest checkpoint, for the ways in that take one beside the victim."""
    from unbackdoor import save
    from unbackdoor_image import KIT

    path = tmp_path_factory.mktemp("honest") / "given.safetensors"
    save(KIT.build("smallcnn", num_classes=10, in_channels=1), path)
    return path


def test_there_are_many_of_them() -> None:
    assert len(CARDS) >= 400  # one in sixteen is tried by default


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (n % 16 > 0)) for n, name in enumerate(CARDS)]
)
def test_hostile_victim_is_refused_by_every_way_in(
    name: str, given: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, compared = CARDS[name](tmp_path), list(CARDS).index(name) % 40 == 0
    before, out = seen(tmp_path), tmp_path_factory.mktemp("out")
    outcomes = tried(partial(victim_ways, folder, out, given, compared=compared), tmp_path)
    assert len(outcomes) == 5 + compared
    assert faults(outcomes) == []
    assert traces(tmp_path, before) == []
    assert [path.name for path in out.iterdir() if path.suffix == ".safetensors"] == []
