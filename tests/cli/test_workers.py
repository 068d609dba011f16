"""Methods side by side: a refusal comes back as it was, progress is told, and nothing stays behind."""

from __future__ import annotations

import multiprocessing
import tempfile
from pathlib import Path

import pytest

import unbackdoor
from unbackdoor.attacker.plan import open_victim
from unbackdoor.errors import BadOption
from unbackdoor.registry import method
from unbackdoor_cli.workers import purify_together


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders come to lie."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def test_each_method_gives_what_it_gives_alone(victim: Path, scratch: Path) -> None:
    scene = open_victim(victim)
    purifiers = [method("bn-only")(), method("ft")(steps=30)]
    told: list[list[tuple[int, int]]] = [[], []]
    tells = [lambda step, steps, scalars, seen=seen: seen.append((step, steps)) for seen in told]
    made = purify_together(scene.victim, purifiers, tells, seed=4, jobs=2)
    for purifier, (model, seconds) in zip(purifiers, made, strict=True):
        alone, _ = unbackdoor.purify(scene.victim.model, scene.data.clean, task=scene.task, method=purifier, seed=4)
        weights = alone.state_dict()
        assert all(value.equal(weights[name]) for name, value in model.state_dict().items()), purifier.name
        assert seconds > 0
    assert told[1][-1] == (30, 30)
    assert list(scratch.iterdir()) == []


@pytest.mark.slow
def test_a_refusal_ends_all_of_them(victim: Path, scratch: Path) -> None:
    scene = open_victim(victim)
    purifiers = [method("nft")(max_clean_drop=-1.0), method("f-fip")(steps=10**6)]
    with pytest.raises(BadOption, match="max_clean_drop is -1"):
        purify_together(scene.victim, purifiers, [lambda *told: None] * 2, seed=0, jobs=2)
    assert not multiprocessing.active_children()
    assert list(scratch.iterdir()) == []
