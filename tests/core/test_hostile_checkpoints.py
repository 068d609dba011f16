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


@pytest.mark.parametrize(("what", "words"), [
    ("tensor beyond its storage", "reaches beyond its storage"), ("doubled tuple as a key", "doubles itself"),
    ("doubled tuple in a set", "doubles itself"), ("doubled lists", "doubles itself"), ("deep tuple", "nested more"),
    ("storage a little larger than its entry", "its storage has 16 bytes"), ("no end", "begins more things"),
    ("storage that is not there", "is not there"), ("array larger than its bytes", "fills an array"),
    ("dtype of its own", "fills a dtype"), ("scalar shorter than its type", r"multiarray\.scalar"),
    ("tensor repeated without end", "limit 'memory'"), ("zip bomb", "compressed"), ("frame", "FRAME"),
    ("sparse tensor without end", "sparse tensors.*dense"), ("storage without end, legacy", "tensors need"),
    ("bytes without end", "bytearray"), ("two pickles under one name", "one name"), ("protocol 4, zip", "protocol 4"),
    ("giant number", "giant number"), ("list in itself", "more containers"),
])  # fmt: skip
def test_guard_of_ours_stands_before_those_of_torch(tmp_path, what, words):
    (tmp_path / "model.pt").write_bytes(FILES[what])
    with pytest.raises(UnbackdoorError, match=words):
        read(tmp_path / "model.pt")
