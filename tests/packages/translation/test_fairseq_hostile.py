"""Checkpoints of fairseq's layout that are damaged, odd or hostile: one error each, and nothing runs or grows."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pytest
import torch
from hostile.pickles import hostile_pickles

from unbackdoor.errors import CheckpointMismatch, NonFinite, UnbackdoorError
from unbackdoor.testing import check_reader
from unbackdoor_translation.models.fairseq import load_fairseq
from unbackdoor_translation.models.hub import small

FILES = dict(hostile_pickles(Path("ran")))
ARGUMENTS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 16}


def state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = small("fsmt", 12, width=4, depth=1, heads=2, pad=1, start=2, end=2, positions=16)
    names = {name.removeprefix("model."): value.clone() for name, value in model.state_dict().items()}
    return {name: value for name, value in names.items() if "embed_positions" not in name}


def content(change=None, **arguments):
    buffer = io.BytesIO()
    given = argparse.Namespace(**{**ARGUMENTS, **arguments})
    torch.save({"args": given, "model": {**state(), **(change or {})}}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("what", FILES)
def test_hostile_checkpoint_runs_nothing(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    Path("checkpoint.pt").write_bytes(FILES[what])
    with pytest.raises(UnbackdoorError):
        load_fairseq("checkpoint.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("change", [
    {"encoder.layers.999999999.fc1.weight": torch.zeros(1)}, {"encoder.layers.500000.fc1.weight": torch.zeros(1)},
    {"encoder.embed_tokens.weight": torch.zeros(12, 100_000)}, {"encoder.embed_tokens.weight": torch.zeros(10**12, 0)},
    {"encoder.embed_tokens.weight": torch.tensor(1.0)}, {"encoder.layers.0.fc1.weight": torch.zeros(10**9, 0)},
    {"encoder.layers.0.self_attn.in_proj_weight": torch.zeros(4, 4)}, {3: torch.zeros(1)},
    {"encoder.layers.0.in_proj_weight": torch.tensor(1.0)},
])  # fmt: skip
def test_sizes_that_nothing_in_the_file_fills_are_refused(tmp_path, change):
    (tmp_path / "c.pt").write_bytes(content(change))
    if 3 in change:
        assert load_fairseq(tmp_path / "c.pt")
    else:
        with pytest.raises(UnbackdoorError, match=r"c\.pt|layer"):
            load_fairseq(tmp_path / "c.pt")


@pytest.mark.parametrize("arguments", [
    {"max_source_positions": 10**12}, {"max_source_positions": "many"}, {"encoder_attention_heads": 0},
    {"encoder_attention_heads": "two"}, {"encoder_attention_heads": None}, {"dropout": "x"},
    {"activation_fn": "os.system"},
])  # fmt: skip
def test_odd_arguments_are_refused(tmp_path, arguments):
    (tmp_path / "c.pt").write_bytes(content(**arguments))
    with pytest.raises(UnbackdoorError, match=r"c\.pt|max_source_positions"):
        load_fairseq(tmp_path / "c.pt")


def test_weights_that_are_no_finite_floats_are_refused(tmp_path):
    name = "encoder.layers.0.fc1.weight"
    (tmp_path / "c.pt").write_bytes(content({name: torch.full_like(state()[name], torch.nan)}))
    with pytest.raises(NonFinite, match="fc1"):
        load_fairseq(tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes(content({name: state()[name].long()}))
    with pytest.raises(CheckpointMismatch, match="whole numbers"):
        load_fairseq(tmp_path / "c.pt")


def test_damaged_checkpoint_ends_in_an_error_of_ours(tmp_path):
    check_reader(load_fairseq, {"c.pt": content()}, tmp_path)


@pytest.mark.slow
def test_damaged_checkpoint_ends_in_an_error_of_ours_many_times(tmp_path):
    check_reader(load_fairseq, {"c.pt": content()}, tmp_path, count=50_000)
