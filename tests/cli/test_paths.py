"""What a command reads is never written over, and what it writes cannot collide."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unbackdoor.errors import FileRefused
from unbackdoor_cli.paths import check_outputs, fresh_name


@pytest.fixture(autouse=True)
def _files(folder):
    Path("photos/cat").mkdir(parents=True)
    Path("photos/cat/1.png").write_text("cat")
    Path("model.pt").write_text("weights")
    Path("classes.txt").write_text("cat")
    Path("mine.py").write_text("def build(): ...")
    Path("foreign").mkdir()
    Path("foreign/card.json").write_text('{"data_options": {"path": "classes.txt", "size": 3}}')
    Path("hard.pt").hardlink_to("model.pt")
    Path("album").symlink_to("photos")


@pytest.mark.parametrize(
    ("output", "inputs", "words"),
    [
        ("model.pt", ["model.pt"], []),
        ("./photos/../model.pt", ["model.pt"], []),
        ("hard.pt", ["model.pt"], []),
        ("photos/cat/1.png", ["photos"], []),
        ("album/cat/1.png", ["photos"], []),
        ("photos/cat/1.png", ["album"], []),
        ("photos/cat/1.png", [None, "photos/cat"], []),
        ("foreign/card.json", ["foreign"], []),
        ("classes.txt", ["foreign"], []),
        ("classes.txt", [], ["classes=classes.txt"]),
        ("classes.txt", [], ["size=3", "classes.txt"]),
        ("photos/cat/1.png", [], ["path=photos"]),
        ("mine.py", [], ["mine:build"]),
    ],
)
def test_input_is_not_written_over_even_with_force(output, inputs, words):
    with pytest.raises(FileRefused, match="not even with --force"):
        check_outputs([Path("new"), Path(output)], inputs, force=True, words=words)


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"data_options": 3}', '{"data_options": {"path": "a\\u0000b"}}'])
def test_new_files_are_allowed_beside_inputs(broken):
    Path("foreign/card.json").write_text(broken)
    Path("old").write_text("old")
    words = ["", "=", ":", "torchvision:resnet18", "a\0b=c\0d", "n" * 5000, "mean=0.5,0.5"]
    check_outputs(
        [Path("photos/new"), Path("new/new"), Path("old")], ["photos", "victim", "gone"], force=True, words=words
    )
    with pytest.raises(FileRefused, match="old exists"):
        check_outputs([Path("old")], [], force=False)


def test_fresh_name_is_no_dangling_link():
    Path("p.png").symlink_to("nowhere")
    assert fresh_name(Path("p.png")) == Path("p-2.png")


def test_commands_do_not_write_over_what_they_read(call, folder, victim):
    """The flag that names the output is the only one that may change a file."""
    weights, card = victim / "model.safetensors", victim / "card.json"
    for words in (
        ["purify", victim, "--out", weights],
        ["purify", victim, "--out", "p.safetensors", "--report", card],
        ["purify", victim, "--out", "p.safetensors", "--report", victim / "attack.safetensors"],
        ["train", "--defence", "abl", "--like", victim, "--out", weights],
        ["train", "--defence", "abl", "--like", victim, "--out", "p.safetensors", "--report", card],
        ["attack", "--task", "toy", "--data", "blobs", "--model", "mlp", "--data-path", card, "--out", victim],
        ["demo", "--task", "toy", "--data-path", card, "--picture", card],
    ):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert "not even with --force" in call(*words, "--force").error, words
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert "victim's folder" in call("compare", victim, "--out", victim).error


@pytest.mark.parametrize("command", ["purify victim", "train --defence abl --like victim"])
def test_equal_paths_and_odd_targets_are_refused_before_the_work(call, folder, victim, command, monkeypatch):
    monkeypatch.setattr("unbackdoor_cli.progress.stages", lambda output: pytest.fail("worked before it checked"))
    os.mkfifo("pipe")
    Path("link.safetensors").symlink_to("model.pt")
    for out, report, told in (
        ("p.safetensors", "p.safetensors", "are one file"),
        ("p.safetensors", "./p.safetensors", "are one file"),
        ("p.safetensors", "/dev/null", "device"),
        ("p.safetensors", "pipe", "device, pipe"),
        ("p.safetensors", "photos", "is a folder"),
        ("link.safetensors", "r.json", "is a link"),
        ("model.pt/p.safetensors", "r.json", "not a directory"),
        ("p.safetensors", "r" * 300, "too long"),
        ("p.safetensors", "a\0b", "null"),
    ):
        error = call(*command.split(), "--out", out, "--report", report, "--force").error
        assert told in error.lower(), (out, report)
    assert not Path("p.safetensors").exists()


def test_weights_and_report_are_of_one_run(call, folder, victim, monkeypatch):
    words = ["purify", victim, "--method", "bn-only", "--steps", 2, "--out", "p.safetensors", "--anyway"]
    assert call(*words).code == 0
    old = {name: Path(name).read_bytes() for name in ("p.safetensors", "p.report.json")}
    real = os.replace

    def replace(source, target, **named):
        if Path(target) == folder / "p.report.json" and "drafts" in str(source):
            raise OSError(28, "No space left on device")
        return real(source, target, **named)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        assert "No space left" in call(*words, "--seed", 1, "--force").error
    assert {name: Path(name).read_bytes() for name in old} == old
    assert call(*words, "--seed", 1, "--force").code == 0
    assert Path("p.report.json").read_bytes() != old["p.report.json"]
