"""A model whose figures would mean nothing is refused, whatever the command, and JSON never holds NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def broken(victim, folder):
    tensors = load_file(victim / "model.safetensors")
    tensors["0.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "broken.safetensors")
    return folder / "broken.safetensors"


@pytest.mark.parametrize("json", [[], ["--json"]])
@pytest.mark.parametrize("command", [["evaluate"], ["purify", "--out", "p.safetensors", "--anyway"]], ids=" ".join)
def test_weights_that_are_nan_are_refused(call, victim, samples, broken, command, json):
    command, *flags = command
    for given in (["--attack-from", victim], ["--task", "toy", "--model", "mlp", "--data", samples]):
        if command == "purify" and given[0] == "--attack-from":
            continue
        assert "NaN" in call(command, broken, *given, *flags, *json).error


@pytest.mark.parametrize("label", [-1, 3, 2**62, 2**63])
def test_labels_that_no_class_has_are_refused(call, victim, folder, label):
    import unbackdoor_toy

    clean = unbackdoor_toy.blobs(seed=7).clean
    labels = clean.targets.numpy().astype(np.uint64 if label > 2**62 else np.int64)
    labels[4] = label
    np.savez(folder / "odd.npz", x=clean.inputs.numpy(), y=labels)
    given = ["--task", "toy", "--model", "mlp", "--data", folder / "odd.npz", "--json"]
    error = call("evaluate", victim / "model.safetensors", *given).error
    assert "label" in error
    assert str(label) in error.replace(",", "")


def test_answers_that_overflow_are_refused(call, victim, samples, folder):
    tensors = {name: value * 1e30 if value.dtype is torch.float32 else value for name, value in
               load_file(victim / "model.safetensors").items()}  # fmt: skip
    save_file(tensors, folder / "huge.safetensors")
    error = call("evaluate", folder / "huge.safetensors", "--task", "toy", "--model", "mlp", "--data", samples).error
    assert "answers hold NaN or infinity" in error


def test_a_report_with_nan_is_written_as_null(call, victim, folder, monkeypatch):
    import unbackdoor

    plain = unbackdoor.purify

    def odd(*given, **words):
        from dataclasses import replace

        model, report = plain(*given, **words)
        return model, replace(report, before={"accuracy": float("nan")}, log=({"step": 1.0, "loss": float("inf")},))

    monkeypatch.setattr(unbackdoor, "purify", odd)
    assert call("purify", victim, "--method", "ft", "--steps", 2, "--out", "p.safetensors", "--json").json["after"]
    assert "NaN" not in (folder / "p.report.json").read_text()
