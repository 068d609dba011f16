"""Opening a victim's folder: honest ones open; of hostile ones nothing runs, connects, or is touched elsewhere."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from functools import cache

import pytest
from hostile.cards import hostile_cards
from hostile.traps import RAN, lay, seen, traces
from hostile.victims import honest, write
from hostile.watching import watched

from unbackdoor.attacker.plan import is_victim, open_victim
from unbackdoor.errors import UnbackdoorError
from unbackdoor.registry import kit

CARDS = dict(hostile_cards())


@pytest.fixture(autouse=True)
def _kits_are_found_once(monkeypatch):
    """Looking through all installed packages takes longer than all else here."""
    monkeypatch.setattr("unbackdoor.attacker.plan.kit_of", _kit)


@cache
def _kit(name):
    return kit(name)


@contextmanager
def within(seconds: int):
    def stop(*_):
        raise AssertionError(f"it takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("task", ["image", "multilabel", "video", "pointcloud", "translation"])
def test_honest_victim_opens(task, tmp_path, monkeypatch):
    lay(tmp_path)
    write(tmp_path / "victim", honest(task))
    monkeypatch.chdir(tmp_path / "here")
    before = seen(tmp_path)
    with watched(tmp_path / "outside") as done:
        scene = open_victim(tmp_path / "victim")
    assert len(scene.data.clean)
    assert scene.victim.card.task == task
    assert (done, traces(tmp_path, before)) == ([], [])


@pytest.mark.parametrize("name", CARDS)
def test_hostile_victim_is_refused_and_does_nothing(name, tmp_path, monkeypatch):
    folder = CARDS[name](tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    before = seen(tmp_path)
    with watched(tmp_path / "outside") as done, within(30):
        is_victim(folder)
        with pytest.raises(UnbackdoorError) as refusal:
            open_victim(folder)
    assert not (tmp_path / RAN).exists()
    assert (done, traces(tmp_path, before)) == ([], [])
    assert len(str(refusal.value)) < 2000
    assert str(refusal.value).isprintable(), repr(str(refusal.value))
