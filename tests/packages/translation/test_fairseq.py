"""Checkpoints of fairseq's layout, made here from a known model; no fairseq is needed or imported."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch

from unbackdoor.errors import CheckpointMismatch, FileRefused, UnsafeCheckpoint, UnsupportedModel
from unbackdoor.network.signature import ties
from unbackdoor_translation.models.fairseq import load_fairseq
from unbackdoor_translation.models.hub import small


@pytest.fixture
def known():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return small("fsmt", 30, width=8, depth=2, heads=2, pad=1, start=2, end=2, positions=1024).eval()


def layout(model, fused):
    """The state dict under fairseq's names; ``fused`` is where the joint projection lies: none, layer or attention."""
    state = {name.removeprefix("model."): value.clone() for name, value in model.state_dict().items()}
    state = {name: value for name, value in state.items() if "embed_positions" not in name}
    for side in ("encoder", "decoder"):
        state[f"{side}.version"] = torch.tensor([3.0])
        state[f"{side}.embed_positions._float_tensor"] = torch.zeros(1)
    for layer in range(2):
        if fused == "none":
            continue
        where = f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{where}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            owner = where if fused == "layer" else f"{where}.self_attn"
            state[f"{owner}.in_proj_{kind}"] = torch.cat(parts)
            if fused == "layer":
                state[f"{where}.out_proj.{kind}"] = state.pop(f"{where}.self_attn.out_proj.{kind}")
    return state


def written(path, state, **content):
    arguments = argparse.Namespace(encoder_attention_heads=2, decoder_attention_heads=2, arch="transformer_tiny")
    torch.save({"args": arguments, "model": state, "optimizer_history": [{"num_updates": 3}], **content}, path)
    return path


@pytest.mark.parametrize("fused", ["none", "layer", "attention"])
def test_checkpoint_becomes_the_model_that_it_was_made_from(known, tmp_path, fused):
    found, arguments = load_fairseq(written(tmp_path / "checkpoint.pt", layout(known, fused)))
    assert arguments["arch"] == "transformer_tiny"
    tokens = torch.randint(3, 30, (2, 5), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": tokens, "decoder_input_ids": tokens, "use_cache": False}
    torch.testing.assert_close(found(**inputs).logits, known(**inputs).logits, rtol=0, atol=1e-6)
    assert len(ties(found)) == 1
    assert not found.training


def test_query_key_and_value_are_not_mistaken_for_each_other(known, tmp_path):
    state = layout(known, "layer")
    swapped = state["encoder.layers.0.in_proj_weight"]
    state["encoder.layers.0.in_proj_weight"] = swapped.roll(8, dims=0)
    found, _ = load_fairseq(written(tmp_path / "checkpoint.pt", state))
    tokens = torch.randint(3, 30, (2, 5), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": tokens, "decoder_input_ids": tokens, "use_cache": False}
    assert float((found(**inputs).logits - known(**inputs).logits).detach().abs().max()) > 1e-6


def test_arguments_may_lie_in_a_cfg(known, tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"args": None, "cfg": {"model": {"encoder_attention_heads": 2, "decoder_attention_heads": 2}}} |
               {"model": layout(known, "none")}, path)  # fmt: skip
    found, _ = load_fairseq(path)
    assert found.config.encoder_attention_heads == 2


def test_checkpoint_of_fairseq_itself_says_what_fairseq_says():
    folder = os.environ.get("UNBACKDOOR_FAIRSEQ")
    if not folder:
        pytest.skip("needs a checkpoint that fairseq wrote: nox -s fairseq makes one")
    found, arguments = load_fairseq(Path(folder) / "checkpoint_last.pt")
    assert arguments["arch"] == "transformer_tiny"
    answers = torch.load(Path(folder) / "answers.pt", weights_only=True)
    inputs = {"input_ids": answers["source"], "decoder_input_ids": answers["prefix"], "use_cache": False}
    with torch.no_grad():
        torch.testing.assert_close(found(**inputs).logits, answers["logits"], rtol=0, atol=1e-5)
    assert not torch.equal(answers["logits"][0], answers["logits"][1])
    assert len(ties(found)) == 1


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


def test_what_cannot_be_read_is_refused(known, tmp_path, capsys):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(FileRefused):
        load_fairseq(path)
    torch.save({"model": layout(known, "none"), "x": Evil()}, path)
    with pytest.raises(UnsafeCheckpoint):
        load_fairseq(path)
    assert capsys.readouterr().out == ""
    torch.save({"weights": {}}, path)
    with pytest.raises(CheckpointMismatch):
        load_fairseq(path)
    state = layout(known, "none")
    with pytest.raises(UnsupportedModel, match="pre-norm"):
        load_fairseq(written(path, {**state, "encoder.layer_norm.weight": torch.ones(8)}))
    state.pop("encoder.layers.0.fc2.weight")
    with pytest.raises(CheckpointMismatch, match="fc2"):
        load_fairseq(written(path, state))
