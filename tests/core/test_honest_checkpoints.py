"""Checkpoints as people have them open or are called what they are, by the public interface alone."""

from __future__ import annotations

import argparse
import io
import pickle
import time
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import unbackdoor
from unbackdoor.errors import UnbackdoorError


def model(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


GIVEN, RAW = model(0).state_dict(), model(2).state_dict()


def prefixed(prefix, state=GIVEN):
    return {f"{prefix}{name}": value for name, value in state.items()}


LAYOUTS = {
    "no batch counters": {name: value for name, value in GIVEN.items() if not name.endswith("num_batches_tracked")},
    "BackdoorBench": {"model": GIVEN, "bd_train": {"labels": np.arange(4)}, "args": argparse.Namespace(lr=0.1)},
    "numpy scalar": {"net": GIVEN, "acc": np.float64(93.1)},
    "Lightning": {"state_dict": prefixed("net."), "hyper_parameters": {"lr": 0.1}, "optimizer_states": [{"state": {}}]},
    "Lightning, model": {"state_dict": prefixed("model."), "callbacks": {}},
    "FSDP": prefixed("_fsdp_wrapped_module."),
    "backbone": prefixed("backbone."),
    "SWA": {"n_averaged": torch.tensor(3), **prefixed("module.")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_honest_layouts_open(tmp_path, layout):
    torch.save(LAYOUTS[layout], tmp_path / "model.pt")
    target = model(1)
    unbackdoor.load(target, tmp_path / "model.pt")
    for name, value in GIVEN.items():
        assert torch.equal(target.state_dict()[name], value) or name.endswith("num_batches_tracked")


def test_an_average_beside_raw_weights_is_told(tmp_path):
    torch.save({"state_dict": RAW, "state_dict_ema": GIVEN, "epoch": 3}, tmp_path / "model.pt")
    target = model(1)
    notices = unbackdoor.load(target, tmp_path / "model.pt")
    assert torch.equal(target[0].weight, GIVEN["0.weight"])
    assert any("state_dict_ema" in notice for notice in notices)


def test_what_a_model_does_not_save_may_be_missing(tmp_path):
    """As Marian's positions, which ``save_pretrained`` leaves out."""

    class Marian(nn.Module):
        _keys_to_ignore_on_save = ("positions",)
        _tied_weights_keys = ()

        def __init__(self):
            super().__init__()
            self.inner, self.positions = nn.Linear(2, 2), nn.Parameter(torch.ones(3), requires_grad=False)

    given, target = Marian(), Marian()
    torch.save({n: v for n, v in given.state_dict().items() if n != "positions"}, tmp_path / "model.pt")
    unbackdoor.load(target, tmp_path / "model.pt")
    assert torch.equal(target.inner.weight, given.inner.weight)


class Scaled(nn.Linear):
    """Holds a scale in its further state."""

    scale = 1.0

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, state):
        self.scale = state["scale"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_further_state_is_saved_and_loaded(tmp_path, suffix):
    given, target = Scaled(2, 2), Scaled(2, 2)
    given.scale = 3.0
    unbackdoor.save(given, tmp_path / f"model{suffix}")
    unbackdoor.load(target, tmp_path / f"model{suffix}")
    assert target.scale == 3.0


def test_safetensors_say_that_they_are_of_pytorch(tmp_path):
    unbackdoor.save(model(), tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert (file.metadata() or {}).get("format") == "pt"


def test_safetensors_of_another_name_open(tmp_path):
    unbackdoor.save(model(), tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "model.bin")
    target = model(1)
    unbackdoor.load(target, tmp_path / "model.bin")
    assert torch.equal(target[0].weight, GIVEN["0.weight"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "LFS"),
        (b"<!DOCTYPE html><html><head>", "web page"),
    ],
)
def test_files_that_hold_no_weights_are_called_what_they_are(tmp_path, content, told):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(UnbackdoorError, match=told):
        unbackdoor.load(model(), tmp_path / "model.pt")


@pytest.mark.parametrize("change", [torch.Tensor.bool, torch.Tensor.int, lambda value: value.to(torch.complex64)])
def test_another_kind_of_number_is_refused(tmp_path, change):
    torch.save({**GIVEN, "0.weight": change(GIVEN["0.weight"])}, tmp_path / "model.pt")
    with pytest.raises(UnbackdoorError):
        unbackdoor.load(model(), tmp_path / "model.pt")


def test_escapes_in_names_of_tensors_reach_no_message(tmp_path):
    torch.save({**GIVEN, "\x1b[2Jevil": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(UnbackdoorError) as error:
        unbackdoor.load(model(), tmp_path / "model.pt")
    assert str(error.value).isprintable()


def test_a_small_pickle_takes_no_time(tmp_path):
    """A tuple that is doubled twenty times as the key of a dictionary; thirty would take a day."""
    code = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + b"K\x01\x85"
    for place in range(22):
        code += pickle.BINPUT + bytes([place]) + pickle.BINGET + bytes([place]) + pickle.TUPLE2
    code += pickle.NONE + pickle.SETITEM + pickle.STOP
    made = io.BytesIO()
    torch.save(GIVEN, made)
    with zipfile.ZipFile(made) as old, zipfile.ZipFile(tmp_path / "model.pt", "w") as new:
        for entry in old.namelist():
            new.writestr(entry, code if entry.endswith("data.pkl") else old.read(entry))
    begun = time.thread_time()
    with pytest.raises(UnbackdoorError, match="doubles itself"):
        unbackdoor.load(model(), tmp_path / "model.pt")
    assert time.thread_time() - begun < 1
