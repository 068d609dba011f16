"""Checkpoints that want to run code, or to take all memory or time: each ends at once in an error of ours."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from hostile.pickles import hostile_pickles
from hostile.watching import watched
from torch import nn

import unbackdoor
from unbackdoor.checkpoint import read
from unbackdoor.errors import UnbackdoorError

FILES = dict(hostile_pickles(Path("ran")))


def test_corpus_is_large():
    assert len(FILES) >= 150


@pytest.mark.parametrize("what", FILES)
def test_hostile_checkpoint_runs_nothing_and_ends_at_once(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    path.write_bytes(FILES[what])
    model = nn.Sequential(nn.Linear(2, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for way in (read, lambda place: unbackdoor.load(model, place)):
        begun = time.thread_time()
        with watched(tmp_path / "outside") as did, pytest.raises(UnbackdoorError) as error:
            way(path)
        assert time.thread_time() - begun < 1
        assert did == []
        assert str(path) in str(error.value)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 700
    assert [place.name for place in tmp_path.iterdir()] == ["model.pt"]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
