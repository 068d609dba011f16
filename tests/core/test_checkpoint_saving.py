"""What is written: equal bytes in equal runs, read by the libraries that the input came from."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from torch import nn

from unbackdoor.checkpoint import load, metadata_of, read, save
from unbackdoor.errors import BadOption, UnsupportedModel
from unbackdoor.testing import tiny_models


def model(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def header(path):
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def same(one, two):
    return all(torch.equal(two.state_dict()[name], value) for name, value in one.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pth.tar"])
def test_equal_models_give_equal_bytes_and_come_back(tmp_path, suffix):
    words = {f"key {i}": f"value {i}" for i in range(20)}
    for name in ("a", "b"):
        save(model(), tmp_path / f"{name}{suffix}", metadata=words)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    other = model(1)
    assert load(other, tmp_path / f"a{suffix}") == []
    assert same(model(), other)
    if suffix != ".safetensors":
        other = model(1)
        other.load_state_dict(torch.load(tmp_path / f"a{suffix}", weights_only=True))
        assert same(model(), other)


def test_safetensors_say_that_they_are_of_pytorch_and_keep_the_metadata_given(tmp_path):
    path = tmp_path / "model.safetensors"
    save(model(), path)
    assert header(path)["__metadata__"] == {"format": "pt"}
    save(model(), path, metadata={"format": "np", "origin": "Füße\n", "license": "MIT"}, force=True)
    assert metadata_of(path) == {"format": "pt", "license": "MIT", "origin": "Füße\n"}
    with safetensors.safe_open(path, framework="pt") as opened:
        assert opened.metadata() == metadata_of(path)
    with pytest.raises(BadOption, match="texts"):
        save(model(), path, metadata={"epoch": 3}, force=True)


@pytest.mark.parametrize("name", tiny_models())
def test_safetensors_own_loader_takes_every_architecture(tmp_path, name):
    tiny = tiny_models()[name]
    given, other = tiny.build(0), tiny.build(1)
    save(given, tmp_path / "model.safetensors")
    safetensors.torch.load_model(other, tmp_path / "model.safetensors")
    assert same(given, other)


class Views(nn.Module):
    """Two parameters that are parts of one memory, one that is turned, and a wide buffer of one value."""

    def __init__(self):
        super().__init__()
        memory = torch.arange(12.0)
        self.first, self.second = nn.Parameter(memory[:6].view(2, 3)), nn.Parameter(memory[4:10])
        self.turned = nn.Parameter(torch.arange(6.0).view(2, 3).T)
        self.register_buffer("mask", torch.ones(1).expand(4, 4))
        self.register_buffer("wave", torch.tensor([1 + 2j, 3j]).conj())


def test_memory_that_tensors_share_is_stored_for_each(tmp_path):
    given, other = Views(), Views()
    for parameter in other.parameters():
        parameter.data = torch.zeros_like(parameter)
    other.mask = torch.zeros(4, 4)
    save(given, tmp_path / "m.safetensors")
    load(other, tmp_path / "m.safetensors")
    assert same(given, other)


class Holds(nn.Module):
    """Holds one buffer."""

    def __init__(self, value, name="value"):
        super().__init__()
        self.register_buffer(name, value)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16,
                                   torch.float64, torch.complex64, torch.float8_e4m3fn, torch.uint16])  # fmt: skip
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_every_kind_of_number_comes_back(tmp_path, dtype, suffix):
    given = Holds(torch.tensor([0, 1, 1]).to(dtype))
    other = Holds(torch.zeros(3).to(dtype))
    save(given, tmp_path / f"m{suffix}")
    assert load(other, tmp_path / f"m{suffix}") == []
    assert other.value.dtype is dtype
    assert torch.equal(other.value.to(torch.complex64), given.value.to(torch.complex64))


def test_sparse_and_empty_tensors_are_refused_with_words(tmp_path):
    with pytest.raises(UnsupportedModel, match=r"value is sparse.*dense"):
        save(Holds(torch.eye(3).to_sparse()), tmp_path / "m.safetensors")
    with pytest.raises(UnsupportedModel, match="sparse"):
        save(Holds(torch.eye(3).to_sparse()), tmp_path / "m.pt")
    with pytest.raises(UnsupportedModel, match="meta"):
        save(Holds(torch.ones(3, device="meta")), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_names_with_control_characters_come_back_and_are_shown_escaped(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    save(Holds(torch.ones(2), "odd\x1b[31m\nname"), path)
    assert list(read(path)[0]) == ["odd\x1b[31m\nname"]
    with pytest.raises(ValueError, match="odd") as error:
        load(model(), path)
    assert str(error.value).isprintable()


class Keeps(nn.Module):
    """Has an extra state of its own."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def get_extra_state(self):
        return self.value

    def set_extra_state(self, state):
        self.value = state


@pytest.mark.parametrize("value", [(1, 2), {1: "a"}, b"bytes", {"x": torch.ones(1)}, float("nan"), [object()]])
def test_extra_state_that_json_would_change_is_refused_for_safetensors(tmp_path, value):
    with pytest.raises(UnsupportedModel, match=r"_extra_state .*\.pt"):
        save(Keeps(value), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [(1, 2), {1: "a"}, b"bytes", {"x": torch.ones(1)}])
def test_extra_state_of_plain_values_is_kept_by_torch_save(tmp_path, value):
    save(Keeps(value), tmp_path / "m.pt")
    other = Keeps(None)
    load(other, tmp_path / "m.pt")
    assert other.value == value


def test_extra_state_that_needs_code_is_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match="get_extra_state"):
        save(Keeps(nn.Linear(1, 1)), tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []
