"""What is saved is what timm and torchvision read, and what they save opens."""

from __future__ import annotations

import pytest
import torch

import unbackdoor


def same(one, two):
    other = two.state_dict()
    return all(torch.equal(other[name], value) for name, value in one.state_dict().items())


def made(timm, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model("test_resnet", num_classes=4)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timm_takes_what_is_saved(tmp_path, suffix):
    timm = pytest.importorskip("timm")
    given, path = made(timm, 0), tmp_path / f"model{suffix}"
    unbackdoor.save(given, path)
    assert same(given, timm.create_model("test_resnet", num_classes=4, checkpoint_path=str(path)))
    other = made(timm, 1)
    timm.models.load_checkpoint(other, str(path))
    assert same(given, other)


def test_checkpoint_of_timms_training_opens_with_the_weights_that_timm_would_take(tmp_path):
    timm = pytest.importorskip("timm")
    raw, average, target, theirs = (made(timm, seed) for seed in range(4))
    path = tmp_path / "model_best.pth.tar"
    torch.save({"epoch": 3, "arch": "test_resnet", "state_dict": raw.state_dict(), "optimizer": {"state": {}},
                "state_dict_ema": average.state_dict(), "version": 2, "metric": 71.5}, path)  # fmt: skip
    (notice,) = unbackdoor.load(target, path)
    timm.models.load_checkpoint(theirs, str(path))
    assert same(target, theirs)
    assert "'state_dict_ema'" in notice
    assert "optimizer" in notice
