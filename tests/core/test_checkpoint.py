"""Files of weights: nothing is executed, nothing is half-written, nothing is guessed."""

from __future__ import annotations

import os
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.checkpoint import load, read, save
from unbackdoor.errors import CheckpointMismatch, FileRefused, UnsafeCheckpoint
from unbackdoor.files.writing import write_atomically
from unbackdoor.testing import tiny_models


def model(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


class Malicious:
    """Unpickles by making a folder."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "nested"])
def test_load_refuses_a_malicious_pickle_without_running_it(tmp_path, how):
    trap, path = tmp_path / "executed", tmp_path / "model.pt"
    content = {"state_dict": model().state_dict(), "evil": Malicious(trap)} if how == "nested" else Malicious(trap)
    if how == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    with pytest.raises(UnsafeCheckpoint, match=r"torch\.save\(model\.state_dict\(\)") as error:
        load(model(), path)
    assert not trap.exists()
    assert "sandbox" in str(error.value)
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert trap.exists(), "the trap does not work, so this proves nothing"


def test_load_refuses_a_whole_pickled_module(tmp_path):
    torch.save(model(), tmp_path / "model.pt")
    with pytest.raises(UnsafeCheckpoint):
        load(model(), tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pth", ""])
@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)) * 20, b"PK\x03\x04" + b"\0" * 100, b"\x80\x02]q"])
def test_load_refuses_garbage(tmp_path, suffix, content):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(UnsafeCheckpoint):
        load(model(), path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_load_refuses_a_truncated_file(tmp_path, suffix):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    torch.save(model().state_dict(), whole) if suffix == ".pt" else save(model(), whole)
    cut.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(UnsafeCheckpoint):
        load(model(), cut)


def test_load_names_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(FileRefused, match="no checkpoint at"):
        load(model(), tmp_path / "absent.safetensors")
    with pytest.raises(FileRefused):
        load(model(), tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_save_and_load_are_inverse(tmp_path, suffix):
    given, path = model(0), tmp_path / f"model{suffix}"
    save(given, path) if suffix == ".safetensors" else torch.save(given.state_dict(), path)
    other = model(1)
    assert load(other, path) == []
    assert_close(other.state_dict(), given.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", tiny_models())
def test_save_and_load_round_trip_every_architecture(tmp_path, name):
    tiny = tiny_models()[name]
    given, other = tiny.build(0), tiny.build(1)
    unbackdoor.save(given, tmp_path / "model.safetensors")
    unbackdoor.load(other, tmp_path / "model.safetensors")
    assert_close(other.state_dict(), given.state_dict(), rtol=0, atol=0)
    assert torch.equal(other(tiny.batch().inputs), given(tiny.batch().inputs))


def test_save_stores_tied_weights_once_and_load_ties_them_again(tmp_path):
    tiny = tiny_models()["tied"]
    save(tiny.build(0), tmp_path / "model.safetensors")
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert "embed.weight" in stored
    assert "unembed.weight" not in stored
    other = tiny.build(1)
    load(other, tmp_path / "model.safetensors")
    assert other.unembed.weight is other.embed.weight


@pytest.mark.parametrize(
    "prefixes", [["module."], ["_orig_mod."], ["module.", "_orig_mod."], ["_orig_mod.", "module."]]
)
def test_load_takes_wrappers_prefixes_off_and_says_so(tmp_path, prefixes):
    given, other = model(0), model(1)
    full = "".join(prefixes)
    torch.save({full + name: value for name, value in given.state_dict().items()}, tmp_path / "model.pt")
    (notice,) = load(other, tmp_path / "model.pt")
    assert repr(full) in notice
    assert_close(other.state_dict(), given.state_dict(), rtol=0, atol=0)


def test_load_takes_no_prefix_off_where_only_some_names_carry_it(tmp_path):
    state = {("module." if i else "") + name: v for i, (name, v) in enumerate(model().state_dict().items())}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointMismatch, match=r"unexpected: module\."):
        load(model(), tmp_path / "model.pt")


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "netC", "weights"])
def test_load_reads_the_usual_entries_and_says_so(tmp_path, key):
    given, other = model(0), model(1)
    torch.save({key: given.state_dict(), "epoch": 3}, tmp_path / "model.pt")
    (notice,) = load(other, tmp_path / "model.pt")
    assert repr(key) in notice
    assert_close(other.state_dict(), given.state_dict(), rtol=0, atol=0)


def test_load_lists_missing_unexpected_and_misshapen_tensors(tmp_path):
    state = dict(model().state_dict())
    state["extra.weight"] = torch.zeros(1)
    del state["2.bias"]
    state["0.weight"] = torch.zeros(5, 3)
    torch.save(state, tmp_path / "model.pt")
    target = model(1)
    before = {n: v.clone() for n, v in target.state_dict().items()}
    with pytest.raises(CheckpointMismatch) as error:
        load(target, tmp_path / "model.pt")
    message = str(error.value)
    assert "missing: 2.bias" in message
    assert "unexpected: extra.weight" in message
    assert "0.weight is (5, 3), the model has (4, 3)" in message
    assert_close(dict(target.state_dict()), before, rtol=0, atol=0)


def test_load_never_matches_by_position(tmp_path):
    renamed = {f"layer{i}": v for i, v in enumerate(model().state_dict().values())}
    torch.save(renamed, tmp_path / "model.pt")
    with pytest.raises(CheckpointMismatch, match=r"missing: 0\.weight.*unexpected: layer0"):
        load(model(), tmp_path / "model.pt")


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"epoch": 3}, {}])
def test_load_says_what_a_file_without_named_tensors_holds(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointMismatch, match="holds"):
        load(model(), tmp_path / "model.pt")


def test_load_of_another_precision_keeps_the_models_dtype(tmp_path):
    given, other = model(0).double(), model(1)
    save(given, tmp_path / "model.safetensors")
    load(other, tmp_path / "model.safetensors")
    assert other[0].weight.dtype is torch.float32
    assert_close(other[0].weight, given[0].weight.float(), rtol=0, atol=0)


def test_save_refuses_to_overwrite_unless_forced(tmp_path):
    path = tmp_path / "model.safetensors"
    save(model(0), path)
    before = path.read_bytes()
    with pytest.raises(FileRefused, match=r"exists.*force"):
        save(model(1), path)
    assert path.read_bytes() == before
    save(model(1), path, force=True)
    assert path.read_bytes() != before


def test_save_makes_missing_folders_and_honours_the_umask(tmp_path):
    path = tmp_path / "new" / "folder" / "model.safetensors"
    mask = os.umask(0o027)
    try:
        save(model(), path)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failing_write_leaves_nothing_behind_and_the_old_file_as_it_was(tmp_path, exists, error):
    path = tmp_path / "model.safetensors"
    if exists:
        path.write_bytes(b"precious")

    def half(draft):
        draft.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, half, force=True)
    assert [p.name for p in tmp_path.iterdir()] == (["model.safetensors"] if exists else [])
    assert not exists or path.read_bytes() == b"precious"


def test_save_into_a_path_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileRefused, match="cannot write"):
        save(model(), tmp_path / "file" / "model.safetensors")


def test_save_takes_non_contiguous_and_half_precision_weights(tmp_path):
    given = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last).to(torch.bfloat16)
    save(given, tmp_path / "model.safetensors", metadata={"made": "by hand"})
    tensors, _ = read(tmp_path / "model.safetensors")
    assert tensors["weight"].dtype is torch.bfloat16
    assert torch.equal(tensors["weight"], given.weight.detach())


def test_save_of_a_wrapped_model_loads_into_the_plain_one(tmp_path):
    given, other = model(0), model(1)
    save(nn.DataParallel(given), tmp_path / "model.safetensors")
    notices = load(other, tmp_path / "model.safetensors")
    assert notices
    assert_close(other.state_dict(), given.state_dict(), rtol=0, atol=0)
