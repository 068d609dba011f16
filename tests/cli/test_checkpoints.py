"""What the command line says of a checkpoint that is none, and that folders of weights open."""

from __future__ import annotations

import json

import pytest
import torch

import unbackdoor
from unbackdoor.errors import CheckpointMismatch, FileRefused, UnsafeCheckpoint
from unbackdoor_cli.named import Named
from unbackdoor_cli.subjects import open_subject
from unbackdoor_image import build

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "clean.pt"
    torch.save({"images": torch.rand(20, 3, 16, 16), "labels": torch.arange(20) % 4}, path)
    return path


@pytest.mark.parametrize(("name", "text", "words"), [
    ("page.html", "<!doctype html><html>", "web page"), ("model.pt", POINTER, "git lfs pull"),
    ("model.bin", "Entry not found", "a text that begins with 'Entry not found'"),
])  # fmt: skip
def test_file_that_is_no_checkpoint_is_called_what_it_is_before_anything_is_read(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    for given in ({}, {"model": "smallcnn", "data": tmp_path / "absent"}):
        with pytest.raises(UnsafeCheckpoint, match=words):
            open_subject(Named(source=tmp_path / name, **given))


def test_folder_with_weights_opens_and_one_without_is_refused(tmp_path, data):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(FileRefused, match=r"no checkpoint in the folder.*card\.json"):
        open_subject(Named(source=folder, model="smallcnn", data=data))
    given = build("smallcnn", 4, seed=3)
    unbackdoor.save(given, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    subject = open_subject(Named(source=folder, model="smallcnn", data=data, num_classes=4, device="cpu"))
    assert all(torch.equal(subject.model.state_dict()[n], v) for n, v in given.state_dict().items())


def test_entry_says_which_weights_are_meant(tmp_path, data):
    one, two = (build("smallcnn", 4, seed=seed).state_dict() for seed in (3, 4))
    torch.save({"student": one, "other": two}, tmp_path / "m.pt")
    named = {"source": tmp_path / "m.pt", "model": "smallcnn", "data": data, "num_classes": 4, "device": "cpu"}
    with pytest.raises(CheckpointMismatch, match="--entry"):
        open_subject(Named(**named))
    subject = open_subject(Named(**named, entry="other"))
    assert all(torch.equal(subject.model.state_dict()[n], v) for n, v in two.items())
    assert any("'other'" in notice and "student" in notice for notice in subject.notices)
