"""What a user is told and what is kept for her, seen from the command line alone."""

from __future__ import annotations

import json
import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import unbackdoor
from unbackdoor.errors import UnbackdoorError
from unbackdoor_cli.main import main

QUICK = ["--method", "ft", "--steps", 2]


def kept(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed(path, **fields):
    card = json.loads(path.read_text())
    path.write_text(json.dumps({**card, **fields}))


# ------------------------------------------------------------------------------------------------ a stranger's victim


@pytest.mark.parametrize("command", ["evaluate", "purify", "compare", "train", "attack from"])
def test_a_card_runs_no_code(call, victim, folder, command):
    (folder / "evil.py").write_text("open('RAN', 'w')\n\ndef build(*given, **words):\n    raise SystemExit(0)\n")
    changed(victim / "card.json", model="evil:build", model_options={})
    words = {
        "evaluate": ["evaluate", victim],
        "purify": ["purify", victim, *QUICK, "--out", "p.safetensors"],
        "compare": ["compare", victim, "--methods", "ft", "--device", "cpu", "--threads", 1, "--out", "c"],
        "train": ["train", "--defence", "abl", "--like", victim, "--out", "t.safetensors"],
        "attack from": ["evaluate", victim / "model.safetensors", "--attack-from", victim],
    }[command]
    assert call(*words).code == 2
    assert not (folder / "RAN").exists()


def test_a_card_reads_nothing_from_elsewhere(call, victim, folder):
    (folder / "other").mkdir()
    changed(victim / "card.json", data_options={"path": str(folder / "other")}, hash="")
    assert call("evaluate", victim).code == 2


@pytest.mark.parametrize("name", ["attack.safetensors", "model.safetensors"])
def test_a_victim_whose_files_were_changed_is_refused(call, victim, name):
    if name == "model.safetensors":
        changed(victim / "card.json", hash="")
        save_file({n: v + 0.01 for n, v in load_file(victim / name).items()}, victim / name)
    else:
        save_file({"more": torch.ones(1)}, victim / name)
    assert "card.json" in call("evaluate", victim).error


# -------------------------------------------------------------------------------------------------- nothing is lost


def test_no_output_replaces_another_or_an_input(call, victim, folder):
    call("purify", victim, *QUICK, "--out", "old.safetensors")
    os.mkfifo("pipe")
    before = kept(folder)
    for out, report in (
        ("x.safetensors", "x.safetensors"),
        ("old.safetensors", victim / "model.safetensors"),
        (victim / "model.safetensors", "r.json"),
        ("x.safetensors", "pipe"),
    ):
        words = ["purify", victim, *QUICK, "--out", out, "--report", report, "--force"]
        assert call(*words).code == 2, (out, report)
    assert kept(folder) == before
    assert Path("pipe").is_fifo()


def test_weights_are_never_newer_than_their_report(call, victim, folder, monkeypatch):
    words = ["purify", victim, "--method", "bn-only", "--out", "p.safetensors", "--report", "p.json"]
    assert call(*words).code == 0
    before = kept(folder)
    real = os.replace

    def full(source, target, **named):
        if Path(target).name == "p.json":
            raise OSError(28, "No space left on device")
        return real(source, target, **named)

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(Path, "replace", lambda source, target: full(source, target))
    monkeypatch.setattr(os, "rename", full)
    assert call(*words, "--seed", 1, "--force").code != 0
    monkeypatch.undo()
    assert {path: content for path, content in kept(folder).items() if path in before} == before


def test_a_program_that_is_ended_leaves_no_folder(toy_path, victim, folder, monkeypatch):
    """In a process of its own, which ends itself while it tunes."""
    scratch = folder / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads in the parent, which the child does not use
        child = os.fork()
    if child == 0:
        monkeypatch.setattr(unbackdoor.Victim, "save", lambda *given: os.kill(os.getpid(), signal.SIGTERM))
        words = ["demo", "--task", "toy", "--methods", "ft,bn-only", "--jobs", "2", "--picture", "p.png"]
        os._exit(main(words))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM
    assert list(scratch.iterdir()) == []


# ------------------------------------------------------------------------------------------------- figures, exit codes


def test_figures_of_samples_of_the_user_are_never_green(call, victim, samples, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    import unbackdoor_toy

    model, clean = unbackdoor_toy.mlp(3), unbackdoor_toy.blobs(seed=7).clean
    unbackdoor.load(model, victim / "model.safetensors")
    with torch.no_grad():
        model.eval()
        logits = model(clean.inputs)
        lead = logits.gather(1, clean.targets[:, None])[:, 0] - logits[:, 0]
        list(model.parameters())[-1][0] += lead[clean.targets > 0].quantile(0.4)
    unbackdoor.save(model, "worse.safetensors")
    words = ["--task", "toy", "--model", "mlp", "--data", samples, "--method", "ft", "--steps", 40, "--lr", 0.05]
    result = call("purify", "worse.safetensors", *words, "--out", "p.safetensors")
    assert "+" in result.out
    assert "held out" in result.out
    assert "\x1b[" in result.out
    assert "\x1b[32m" not in result.out


def test_a_comparison_without_any_result_is_no_success(call, victim):
    words = ["--methods", "ft", "--clean", 100_000, "--device", "cpu", "--threads", 1, "--out", "c"]
    assert call("compare", victim, *words).code == 2


def test_an_empty_file_is_no_interruption(call, victim, folder):
    (folder / "a.npz").write_bytes(b"")
    (folder / "a.npy").write_bytes(b"")
    for name in ("a.npz", "a.npy"):
        words = ["--task", "toy", "--model", "mlp", "--data", name]
        assert call("evaluate", victim / "model.safetensors", *words).code == 2


def test_samples_that_a_model_cannot_take_are_one_sentence(call):
    error = call("attack", "--task", "image", "--data", "digits", "--model", "smallcnn", "--out", "v").error
    assert "digits" in error


def test_one_huge_label_is_refused(call, victim, folder):
    np.savez(folder / "a.npz", x=np.zeros((2, 8), np.float32), y=np.array([0, 1_000_000]))
    words = ["--task", "toy", "--model", "mlp", "--data", "a.npz"]
    assert "1,000,000" in call("evaluate", victim / "model.safetensors", *words).error


# ---------------------------------------------------------------------------------------------------------- advice


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["purify", "victim", "--methd", "ft", "--out", "p.safetensors"], "--method"),
        (
            ["attack", "--task", "image", "--data", "digits", "--model", "resnet18", "--out", "v"],
            "torchvision:resnet18",
        ),
    ],
)
def test_the_word_that_was_meant_is_named(call, victim, words, meant):
    assert f"id you mean {meant}" in call(*words).error.replace("'", "")


def test_a_class_is_taken_for_a_method_and_a_class_that_is_none_is_told(samples):
    import unbackdoor_toy

    found, _ = unbackdoor_toy.KIT.load_clean(samples)
    model = unbackdoor_toy.KIT.build("mlp", num_classes=3)
    with pytest.raises(UnbackdoorError, match="Purifier"):
        unbackdoor.purify(model, found, task=unbackdoor_toy.ToyTask(), method=unbackdoor_toy.ToyTask)


def test_plugins_have_cards_and_attacks(call, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "further")
    assert "Multiply every weight." in call("card", "shrink").out
    assert "edge" in call("list", "attacks", "--json").json["attacks"]["toy"]
