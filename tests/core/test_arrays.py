"""Files of plain arrays: every format, and nothing that would have to be unpickled."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch

from unbackdoor.arrays import LABEL_KEYS, as_labels, pick_arrays, read_arrays
from unbackdoor.errors import BadData, UnsafeCheckpoint

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
