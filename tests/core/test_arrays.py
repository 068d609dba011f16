"""Files of plain arrays: every format, and nothing that would have to be unpickled."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch

from unbackdoor.arrays import LABEL_KEYS, as_labels, pick_arrays, read_arrays
from unbackdoor.errors import BadData, FileRefused, TooLarge, UnsafeCheckpoint

X, Y = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)), torch.arange(4)
WANTED = {"points": ("points", "x"), "labels": LABEL_KEYS}


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".pth", ".safetensors"])
def test_every_format_gives_the_same_arrays(tmp_path, suffix):
    path = tmp_path / f"samples{suffix}"
    if suffix == ".npz":
        np.savez(path, x=X.numpy(), y=Y.numpy())
    elif suffix == ".safetensors":
        safetensors.torch.save_file({"x": X, "y": Y}, path)
    else:
        torch.save({"x": X, "y": Y}, path)
    found = pick_arrays(read_arrays(path), path, WANTED)
    assert torch.equal(found[0], X)
    assert torch.equal(as_labels(found[1], 4, path), Y)


def test_pickles_and_unknown_kinds_are_refused(tmp_path):
    path = tmp_path / "objects.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BadData, match="without unpickling"):
        read_arrays(path)
    path = tmp_path / "code.pt"
    torch.save({"x": pytest.raises}, path)
    with pytest.raises(UnsafeCheckpoint):
        read_arrays(path)
    with pytest.raises(BadData, match=r"give a folder, \.npz, \.pt, \.pth or \.safetensors"):
        read_arrays(tmp_path / "samples.csv", "a folder")


def test_missing_arrays_and_labels_of_another_form_are_refused(tmp_path):
    with pytest.raises(BadData, match="holds x; expected 2 tensors named points and labels"):
        pick_arrays({"x": X}, tmp_path, WANTED)
    assert torch.equal(as_labels(Y[:, None].int(), 4, tmp_path), Y)
    for wrong in (Y.float(), Y[:3], Y.view(2, 2)):
        with pytest.raises(BadData, match="expected 4 whole numbers"):
            as_labels(wrong, 4, tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 4294967295, 1, 2]), "4,294,967,295"),
        (np.array([0, 1, -1, 2]), r"down to -1 \(sample 2\)"),
        (np.array([0, 1, 2, 2**63], np.uint64), "9,223,372,036,854,775,808"),
        (np.array([True] * 4), "bool"),
        (np.array([0, 1, 2, 3], complex), "complex128"),
        (np.array([0, 1, np.nan, 3]), "float64"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(tmp_path, labels, message):
    np.savez(tmp_path / "a.npz", x=X.numpy(), y=labels)
    with pytest.raises(BadData, match=message):
        as_labels(pick_arrays(read_arrays(tmp_path / "a.npz"), tmp_path / "a.npz", WANTED)[1], 4, tmp_path)


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "uint32", "uint64", ">i8"])
def test_whole_numbers_of_every_kind_are_labels(tmp_path, kind):
    np.savez(tmp_path / "a.npz", x=X.numpy(), y=np.arange(4).astype(kind), about=np.array(["a text"]))
    arrays = read_arrays(tmp_path / "a.npz")
    assert sorted(arrays) == ["about", "x", "y"]
    assert torch.equal(as_labels(arrays["y"], 4, tmp_path), Y)
    with pytest.raises(BadData, match=r"about in .* no numbers"):
        arrays["about"]


def test_tensors_that_repeat_or_leave_out_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"x": torch.zeros(1).expand(2**27), "y": Y}, path)
    with pytest.raises(TooLarge, match="'ratio'"):
        pick_arrays(read_arrays(path), path, WANTED)
    with pytest.raises(BadData, match=r"x in .* is a sparse"):
        pick_arrays({"x": torch.eye(3).to_sparse(), "y": Y}, path, WANTED)


def test_damaged_and_missing_files_are_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(BadData, match=r"a\.npz cannot be read .BadZipFile"):
        read_arrays(tmp_path / "a.npz")
    for name in ("missing.npz", "missing.pt", "missing.safetensors"):
        with pytest.raises(FileRefused, match=name):
            read_arrays(tmp_path / name)
