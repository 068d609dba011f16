from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file

QUICK = ["--epochs", 2, "--batch-size", 16, "--device", "cpu"]


def test_train_like_a_victim_measures_the_attack(call, victim, folder):
    words = ["train", "--defence", "cbd", "--like", victim, *QUICK, "--out", "d.safetensors"]
    payload = call(*words, "--json").json
    assert payload["asr"] == "measured"
    assert list(payload["figures"]) == ["accuracy", "asr", "lcr"]
    assert list(load_file(folder / "d.safetensors")) == list(load_file(victim / "model.safetensors"))
    assert json.loads((folder / "d.report.json").read_text())["method"] == "cbd"
    assert "exists" in call(*words).error


def test_train_on_files_says_that_asr_is_unverified(call, folder):
    import unbackdoor_toy

    samples = unbackdoor_toy.blobs(seed=7).train
    np.savez(folder / "mine.npz", x=samples.inputs.numpy(), y=samples.targets.numpy())
    words = ["train", "--defence", "abl", "--task", "toy", "--model", "mlp", "--data", "mine.npz", *QUICK]
    result = call(*words, "--samples", 40, "--trap-epochs", 2, "--out", "d.safetensors")
    assert result.code == 0, result.err
    assert "ASR unverified" in result.out
    assert "40 samples" in result.out
    assert "percent (optimistic)" in result.out
    assert "Classes: 0 left, 1 middle, 2 right." in " ".join(result.out.split())
    subject = json.loads((folder / "d.report.json").read_text())["subject"]
    assert (subject["model"], subject["classes"]) == ("mlp", ["left", "middle", "right"])


def test_a_model_that_learned_nothing_is_not_written(call, victim, folder):
    words = ["train", "--defence", "cbd", "--like", victim, *QUICK, "--lr", "1e-9", "--out", "d.safetensors"]
    result = call(*words)
    assert (result.code, result.out) == (3, ""), result.err
    assert "no better than one that does not look at them" in result.err
    assert not list(folder.glob("d.*"))
    payload = call(*words, "--anyway", "--json").json
    assert payload["overruled"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--defence", "abk"], "abl"),
        (["--defence", "abl"], "--like"),
        (["--defence", "abl", "--data", "x"], "--model"),
        (["--defence", "abl", "--gama", "1"], "--gamma"),
    ],
)
def test_train_refuses_in_one_line(call, words, told):
    assert told in call("train", *words, "--out", "d.safetensors").error


def test_defences_are_listed_and_have_cards(call):
    assert list(call("list", "defences", "--json").json["defences"]) == ["abl", "cbd"]
    assert "anti-backdoor" in call("card", "abl").out
