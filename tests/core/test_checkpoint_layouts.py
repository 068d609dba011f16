"""Checkpoints as people have them: each layout opens, and one line says what was taken and what was left."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict, defaultdict
from pathlib import PosixPath

import numpy as np
import pytest
import torch
from torch import nn

from unbackdoor.checkpoint import files_of, load, read, save
from unbackdoor.errors import CheckpointMismatch, FileRefused, NonFinite, UnsafeCheckpoint


def model(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


GIVEN, OTHER = model(0).state_dict(), model(2).state_dict()


def prefixed(prefix, state=GIVEN):
    return {f"{prefix}{name}": value for name, value in state.items()}


def same(found, state=GIVEN):
    return all(torch.equal(found.state_dict()[name], value) for name, value in state.items())


def wrapped_inside(state):
    """As compilers and FSDP wrap single layers, and DDP the whole."""
    return {f"module.{name.replace('.', '._fsdp_wrapped_module._orig_mod.', 1)}": v for name, v in state.items()}


BACKDOORBENCH = {
    "model_name": "preactresnet18", "num_classes": 2, "model": GIVEN, "data_path": "../data/cifar10",
    "img_size": (32, 32, 3), "clean_data": "cifar10",
    "bd_train": {"bd_data_container": {"data_dict": {5: {"path": "x/5.png", "other_info": (np.int64(1), 0, 1)}}},
                 "original_index_array": np.arange(4), "poison_indicator": np.array([0, 1, 0, 0])},
    "bd_test": {"poison_indicator": np.ones(3, dtype=bool), "save_folder_path": PosixPath("record/x")},
    "args": argparse.Namespace(lr=0.01, device="cuda:0", steps=[1, 2], dtype=np.float32),
}  # fmt: skip
LIGHTNING = {
    "epoch": 3, "global_step": 7, "pytorch-lightning_version": "2.1", "state_dict": {**prefixed("net."),
    "loss_fn.weight": torch.ones(2), "val_acc.total": torch.ones(1)}, "callbacks": {}, "hyper_parameters": {"lr": 0.1},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]}],
}  # fmt: skip
LAYOUTS = {
    "state_dict": ({"state_dict": GIVEN}, ["'state_dict'"]),
    "generator": ({"generator": GIVEN, "steps": 3}, ["'generator'", "steps"]),
    "params": ({"params": GIVEN}, ["'params'"]),
    "an entry of any name": ({"my_net": GIVEN, "epoch": 1}, ["'my_net'", "epoch"]),
    "in a list": ([GIVEN, {"lr": 1}], ["'0'"]),
    "nested twice": ({"checkpoint": {"model": GIVEN}, "epoch": 1}, ["'checkpoint.model'", "epoch"]),
    "Lightning": (LIGHTNING, ["'state_dict'", "'net.'", "optimizer_states"]),
    "Lightning, compiled": ({**LIGHTNING, "state_dict": prefixed("model._orig_mod.")}, ["'state_dict'"]),
    "DDP within an entry": ({"state_dict": prefixed("module.")}, ["'state_dict'", "'module.'"]),
    "FSDP": (prefixed("_fsdp_wrapped_module."), ["'_fsdp_wrapped_module.'"]),
    "FSDP and compiled layers": (wrapped_inside(GIVEN), ["taken out"]),
    "backbone": (prefixed("backbone."), ["'backbone.'"]),
    "encoder of an encoder": (prefixed("encoder.encoder."), ["'encoder.encoder.'"]),
    "SWA": ({"n_averaged": torch.tensor(3), **prefixed("module.")}, ["'module.'", "n_averaged"]),
    "BackdoorBench": (BACKDOORBENCH, ["'model'", "bd_train", "args"]),
    "GAN attack": ({"netC": GIVEN, "netG": {"conv.weight": torch.ones(3)}, "epoch": 1}, ["'netC'", "netG"]),
    "optimiser, numbers": ({"net": GIVEN, "acc": np.float64(93.1), "best": np.array([1.0]), "optimizer": {
        "state": {0: {"step": torch.tensor(1.0)}}}}, ["'net'", "acc", "best", "optimizer"]),
    "default dictionary": ({"model": GIVEN, "log": defaultdict(list, {"loss": [1.0]})}, ["'model'", "log"]),
    "counters of a profiler": ({**GIVEN, "total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)}, ["total_ops"]),
    "epoch beside flat weights": ({**GIVEN, "epoch": 3}, ["epoch"]),
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_opens_and_one_line_says_what_was_taken_and_left(tmp_path, layout, legacy):
    content, words = LAYOUTS[layout]
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy)
    target = model(1)
    before = set(torch.serialization.get_safe_globals())
    (notice,) = load(target, tmp_path / "model.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    assert same(target)
    assert all(word in notice for word in words)
    assert notice.startswith("model.pt: took the weights")


def test_ordinary_file_needs_no_notice(tmp_path):
    torch.save(GIVEN, tmp_path / "model.pt")
    target = model(1)
    assert load(target, tmp_path / "model.pt") == []
    assert same(target)


@pytest.mark.parametrize("pair", [("model", "ema"), ("state_dict", "state_dict_ema"), ("model", "model_ema"),
                                  ("state_dict", "ema_state_dict"), ("net", "swa_model")])  # fmt: skip
def test_average_is_taken_before_raw_weights_and_the_way_to_these_is_named(tmp_path, pair):
    raw, average = pair
    torch.save({raw: GIVEN, average: prefixed("module.", OTHER), "epoch": 3}, tmp_path / "model.pt")
    target = model(1)
    (notice,) = load(target, tmp_path / "model.pt")
    assert same(target, OTHER)
    assert f"under {average!r}" in notice
    assert f"entry={raw!r}" in notice
    assert load(target, tmp_path / "model.pt", entry=raw)
    assert same(target)
    torch.save({raw: GIVEN, average: OTHER}, tmp_path / "model.pt")
    assert torch.equal(read(tmp_path / "model.pt")[0]["0.weight"], OTHER["0.weight"])
    assert torch.equal(read(tmp_path / "model.pt", entry=raw)[0]["0.weight"], GIVEN["0.weight"])


def test_two_places_that_fit_are_refused_until_one_is_named(tmp_path):
    torch.save({**prefixed("encoder_q."), **prefixed("encoder_k.", OTHER)}, tmp_path / "model.pt")
    target = model(1)
    with pytest.raises(CheckpointMismatch, match="encoder_q, encoder_k"):
        load(target, tmp_path / "model.pt")
    load(target, tmp_path / "model.pt", entry="encoder_k")
    assert same(target, OTHER)
    with pytest.raises(CheckpointMismatch, match="'nowhere'"):
        load(target, tmp_path / "model.pt", entry="nowhere")


def test_part_of_a_larger_model_is_taken_only_when_asked_for(tmp_path):
    torch.save({**prefixed("backbone."), "head.weight": torch.ones(2)}, tmp_path / "model.pt")
    target = model(1)
    with pytest.raises(CheckpointMismatch, match=r"head\.weight.*entry='backbone'"):
        load(target, tmp_path / "model.pt")
    assert same(target, model(1).state_dict())
    (notice,) = load(target, tmp_path / "model.pt", entry="backbone")
    assert "head" in notice
    assert same(target)


@pytest.mark.parametrize("lost", ["0.weight", "1.running_mean", "2.bias"])
def test_partly_fitting_weights_are_refused_by_name(tmp_path, lost):
    torch.save({"model": {n: v for n, v in prefixed("module.").items() if n != f"module.{lost}"}}, tmp_path / "m.pt")
    target = model(1)
    with pytest.raises(CheckpointMismatch, match=f"missing: {lost}"):
        load(target, tmp_path / "m.pt")
    assert same(target, model(1).state_dict())


def test_batch_counters_may_be_missing(tmp_path):
    torch.save({n: v for n, v in GIVEN.items() if "num_batches" not in n}, tmp_path / "m.pt")
    target = model(1)
    assert load(target, tmp_path / "m.pt") == []
    assert same(target, {n: v for n, v in GIVEN.items() if "num_batches" not in n})


class Declares(nn.Module):
    """Says itself what it does not save, as Hugging Face's models do."""

    _keys_to_ignore_on_save = ("positions",)

    def __init__(self):
        super().__init__()
        self.layer, self.tied, self.positions = nn.Linear(2, 2), nn.Linear(2, 2), nn.Parameter(torch.ones(3))
        self.tied.weight = self.layer.weight
        self.register_buffer("mask", torch.full((2,), -torch.inf))


def test_what_a_model_declares_as_not_saved_may_be_missing(tmp_path):
    given = Declares()
    state = {n: v for n, v in given.state_dict().items() if n not in ("positions", "tied.weight")}
    torch.save(state, tmp_path / "m.pt")
    assert load(Declares(), tmp_path / "m.pt") == []
    del state["tied.bias"]
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(CheckpointMismatch, match=r"missing: tied\.bias"):
        load(Declares(), tmp_path / "m.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "value", [{"steps": 3, "names": ["a"], "rate": 0.5}, [1, None, True], 7, "text", torch.ones(2)]
)
def test_extra_state_is_saved_and_loaded(tmp_path, value, suffix):
    class Counts(nn.Linear):
        kept = None

        def get_extra_state(self):
            return self.kept

        def set_extra_state(self, state):
            self.kept = state

    given, target = nn.Sequential(Counts(2, 2)), nn.Sequential(Counts(2, 2))
    given[0].kept = value
    save(given, tmp_path / f"m{suffix}")
    load(target, tmp_path / f"m{suffix}")
    assert torch.equal(target[0].kept, value) if isinstance(value, torch.Tensor) else target[0].kept == value
    assert torch.equal(target[0].weight, given[0].weight)
    torch.save({n: v for n, v in given.state_dict().items() if "extra" not in n}, tmp_path / "without.pt")
    with pytest.raises(CheckpointMismatch, match="_extra_state"):
        load(target, tmp_path / "without.pt")


class Hooked(nn.Module):
    """Loads weights of an older form of itself, in each way that PyTorch offers."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how, self.after = nn.Linear(2, 2), how, 0
        if how == "pre-hook":
            self.register_load_state_dict_pre_hook(lambda _module, state, prefix, *_: self.rename(state, prefix))
        if how == "post-hook":
            self.register_load_state_dict_post_hook(self.count)
        if how == "state dict hook":
            self.register_state_dict_post_hook(self.renamed_back)

    def rename(self, state, prefix):
        for part in ("weight", "bias"):
            if f"{prefix}old_{part}" in state:
                state[f"{prefix}layer.{part}"] = state.pop(f"{prefix}old_{part}")

    @staticmethod
    def count(module, keys):
        module.after += 1

    @staticmethod
    def renamed_back(module, state, prefix, metadata):
        for part in ("weight", "bias"):
            state[f"{prefix}old_{part}"] = state.pop(f"{prefix}layer.{part}")

    def _load_from_state_dict(self, state, prefix, *rest):
        if self.how in ("override", "state dict hook"):
            self.rename(state, prefix)
        super()._load_from_state_dict(state, prefix, *rest)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("how", ["pre-hook", "post-hook", "override", "state dict hook"])
def test_hooks_of_the_model_have_their_say(tmp_path, how, prefix):
    layer = nn.Linear(2, 2)
    names = "layer." if how == "post-hook" else "old_"
    torch.save({f"{prefix}{names}{n}": v for n, v in layer.state_dict().items()}, tmp_path / "m.pt")
    target = Hooked(how)
    load(target, tmp_path / "m.pt")
    assert torch.equal(target.layer.weight, layer.weight)
    assert target.after == (1 if how == "post-hook" else 0)
    save(target, tmp_path / "m.safetensors")
    again = Hooked(how)
    assert load(again, tmp_path / "m.safetensors") == []
    assert torch.equal(again.layer.weight, layer.weight)


def test_hook_that_fails_is_a_mismatch_and_leaves_the_model_alone(tmp_path):
    target = Hooked("")
    before = target.layer.weight.clone()
    target.register_load_state_dict_pre_hook(lambda *_: 1 / 0)
    torch.save(Hooked("").state_dict(), tmp_path / "m.pt")
    with pytest.raises(CheckpointMismatch, match="division by zero"):
        load(target, tmp_path / "m.pt")
    assert torch.equal(target.layer.weight, before)


OF_ANOTHER_KIND = [
    ("0.weight", GIVEN["0.weight"].long(), "whole numbers"),
    ("0.weight", GIVEN["0.weight"] > 0, "booleans"),
    ("0.weight", GIVEN["0.weight"].to(torch.complex64), "complex"),
    ("0.weight", torch.ones(4, 3).to(torch.int8), "quantised"),
    ("1.running_var", torch.ones(4).int(), "running_var"),
    ("1.num_batches_tracked", torch.tensor(1.0), "num_batches_tracked"),
]


@pytest.mark.parametrize(("name", "value", "words"), OF_ANOTHER_KIND)
def test_another_kind_of_number_is_refused_by_name(tmp_path, name, value, words):
    torch.save({**GIVEN, name: value}, tmp_path / "m.pt")
    with pytest.raises(CheckpointMismatch, match=words):
        load(model(1), tmp_path / "m.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_taken_with_a_notice(tmp_path, dtype):
    torch.save({n: v.to(dtype) if v.is_floating_point() else v for n, v in GIVEN.items()}, tmp_path / "m.pt")
    target = model(1)
    (notice,) = load(target, tmp_path / "m.pt")
    assert str(dtype).removeprefix("torch.") in notice
    assert target[0].weight.dtype is torch.float32


def test_weights_beyond_the_models_precision_are_refused(tmp_path):
    torch.save({**GIVEN, "0.weight": torch.full((4, 3), 1e6)}, tmp_path / "m.pt")
    with pytest.raises(CheckpointMismatch, match="float16"):
        load(model(1).half(), tmp_path / "m.pt")


@pytest.mark.parametrize(("name", "bad"), [("0.weight", torch.nan), ("2.bias", torch.inf), ("1.running_var", torch.nan),
                                           ("1.running_mean", -torch.inf)])  # fmt: skip
def test_weights_that_are_not_finite_are_refused(tmp_path, name, bad):
    torch.save({**GIVEN, name: torch.full_like(GIVEN[name], bad)}, tmp_path / "m.pt")
    target = model(1)
    with pytest.raises(NonFinite, match=name):
        load(target, tmp_path / "m.pt")
    assert same(target, model(1).state_dict())


def test_wrapped_model_takes_the_weights_of_the_plain_one(tmp_path):
    torch.save(GIVEN, tmp_path / "m.pt")
    target = nn.DataParallel(model(1))
    assert load(target, tmp_path / "m.pt") == []
    assert same(target.module)


def test_classes_beside_the_weights_are_named(tmp_path):
    class Setting:
        pass

    Setting.__qualname__, Setting.__module__ = "Setting", __name__
    globals()["Setting"] = Setting
    torch.save({"model": GIVEN, "config": Setting()}, tmp_path / "m.pt")
    with pytest.raises(UnsafeCheckpoint, match=r"beside.*Setting.*convert it in a sandbox"):
        load(model(1), tmp_path / "m.pt")
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "m.pt")
    with pytest.raises(UnsafeCheckpoint, match=r"whole model.*torch\.nn\.modules\.linear\.Linear"):
        load(model(1), tmp_path / "m.pt")


def folder(place, files=2):
    names = list(GIVEN)
    place.mkdir()
    index = {}
    for number in range(files):
        part = names[number::files]
        torch.save(OrderedDict((n, GIVEN[n]) for n in part), place / f"part-{number}.bin")
        index |= dict.fromkeys(part, f"part-{number}.bin")
    (place / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return place


def test_shards_open_by_their_folder_and_by_their_index(tmp_path):
    place = folder(tmp_path / "hf")
    for path in (place, place / "pytorch_model.bin.index.json"):
        target = model(1)
        (notice,) = load(target, path)
        assert "2 files" in notice
        assert same(target)
        assert [file.name for file in files_of(path)] == ["pytorch_model.bin.index.json", "part-0.bin", "part-1.bin"]
    assert files_of(place / "part-0.bin") == (place / "part-0.bin",)


ODD_SHARDS = [
    ("part-1.bin", "lacks '0.weight'", CheckpointMismatch),
    (3, "weight_map", CheckpointMismatch),
    ("absent.bin", "absent", FileRefused),
    *((name, "plain names", FileRefused) for name in ("../part-0.bin", "a/b.bin", "", ".", "x.index.json")),
]


@pytest.mark.parametrize(("file", "words", "error"), ODD_SHARDS)
def test_odd_index_is_refused(tmp_path, file, words, error):
    path = folder(tmp_path / "hf") / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["0.weight"] = file
    path.write_text(json.dumps(index))
    with pytest.raises(error, match=words):
        load(model(1), path)


@pytest.mark.parametrize(("names", "words"), [
    ([], "no checkpoint in the folder"), (["a.pt", "b.safetensors"], "2 files of weights"),
    ([".metadata", "__0_0.distcp"], "torch.distributed"), (["adapter_model.safetensors"], "LoRA"),
])  # fmt: skip
def test_folder_without_one_file_of_weights_is_refused(tmp_path, names, words):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FileRefused, match=words):
        load(model(1), tmp_path)


def test_only_file_of_weights_in_a_folder_is_taken(tmp_path):
    torch.save(GIVEN, tmp_path / "anything.pth")
    (tmp_path / "config.json").write_text("{}")
    target = model(1)
    load(target, tmp_path)
    assert same(target)
