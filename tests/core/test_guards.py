"""Guards that stand before others: each refuses by itself, so that one that is taken away is missed."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import safetensors.torch
import torch
from hostile.pickles import as_legacy, as_zip, call, name, number, row, stored, table, tensor, text
from hostile.victims import honest, write
from torch import nn

import unbackdoor
from unbackdoor.attacker.plan import open_victim
from unbackdoor.attacker.vetting import check_options
from unbackdoor.attacker.victim import Victim
from unbackdoor.checkpoint import pickles, read
from unbackdoor.defender.methods.ft import FT
from unbackdoor.defender.purifier import Purifier
from unbackdoor.errors import (
    FileRefused,
    TooLarge,
    UnbackdoorError,
    UnsafeCheckpoint,
    UnsupportedModel,
    UntrustedVictim,
)
from unbackdoor.files.reading import check_zip, limited
from unbackdoor.files.writing import check_targets
from unbackdoor.network.answers import answered
from unbackdoor.network.copying import copied, eager
from unbackdoor.registry import kit as kit_of
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask, SquareTrigger

BYTES = call("_codecs.encode", text("abcde"), text("latin1"))
DOUBLED = b")" + b"".join(b"q" + bytes([place]) + b"h" + bytes([place]) + b"\x86" for place in range(22))
VIEW = row(text("v"), number(2), number(4))
OLD = row(text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), number(4), VIEW) + b"Q"
REBUILD = name("torch._utils._rebuild_tensor_v2")
PARTS = row(stored("Float", 4), number(0), row(number(4)), row(number(1)), b"\x89", call("collections.OrderedDict"))
ODD = {
    "a key that doubles": (b"}" + DOUBLED + b"Ns", "a key doubles itself"),
    "a list with a state": (name("builtins.list") + table() + b"b", "sets the state of something"),
    "a reference to a module": (row(text("module"), text("x")) + b"Q", "no storage of a tensor"),
    "a call of a result": (call("operator.attrgetter", text("x")) + row(number(1)) + b"R", "the result of a call"),
    "a storage of two sizes": (row(stored("Float", 4), stored("Float", 2)), "states two sizes"),
    "a negative stride": (tensor((2,), (-1,)), "no whole numbers"),
    "a date of five bytes": (call("datetime.datetime", BYTES), r"asks for datetime\.datetime"),
    "a type of objects": (call("numpy.dtype", text("O8"), b"\x89", b"\x88"), r"asks for numpy\.dtype"),
    "an array with a size": (
        call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), row(number(9)), BYTES),
        r"_reconstruct",
    ),
    "an array that is called": (call("numpy.ndarray", row(number(9))), r"asks for numpy\.ndarray"),
    "a dictionary with a state": (call("collections.OrderedDict") + table(x=number(1)) + b"b", "fills a dict"),
    "a namespace of arguments": (call("argparse.Namespace", number(1)), r"asks for argparse\.Namespace"),
    "a parameter of nothing": (call("torch._utils._rebuild_parameter", number(1)), r"asks for torch\._utils"),
    "a name that is not called": (name("os.getcwd"), r"asks for os\.getcwd"),
    "a call beside a name": (row(name("os.getcwd"), call("os.system", text("x"))), r"asks for os\.system, which"),
    "a list filled with keys": (b"]" + text("a") + number(1) + b"s", "fills something as a dict"),
    "a storage of less than nothing": (stored("Float", -1), "no storage of a tensor"),
    "a type that no tensor has": (
        call("torch._tensor._rebuild_from_type_v2", name("collections.OrderedDict"), name("torch.Tensor"), row(), b"N"),
        r"asks for torch\._tensor",
    ),
    "a tensor of another class": (
        call("torch._tensor._rebuild_from_type_v2", REBUILD, name("torch.Size"), PARTS, b"N"),
        r"asks for torch\._tensor",
    ),
    "a set of what doubles": (call("builtins.set", b"]" + DOUBLED + b"a"), "a key doubles itself"),
    "a number of text": (call("builtins.complex", text("1")), r"asks for builtins\.complex"),
    "a size below nothing": (call("torch.Size", row(number(-1))), r"asks for torch\.Size"),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_pickles_are_refused_by_what_is_odd(tmp_path, what):
    body, words = ODD[what]
    (tmp_path / "model.pt").write_bytes(as_zip(body))
    with pytest.raises(UnbackdoorError, match=words):
        read(tmp_path / "model.pt")


def test_old_files_are_looked_at_in_the_same_way(tmp_path):
    (tmp_path / "view.pt").write_bytes(as_legacy(OLD))
    with pytest.raises(UnsafeCheckpoint, match="cuts a view out"):
        read(tmp_path / "view.pt")
    content = as_legacy(table())
    machine = b"\x80\x02}."
    assert content.count(machine) >= 1
    (tmp_path / "head.pt").write_bytes(content.replace(machine, b"\x80\x02" + call("os.getcwd") + b".", 1))
    with pytest.raises(UnsafeCheckpoint, match="head holds more than plain values"):
        read(tmp_path / "head.pt")
    torch.save({"x": torch.ones(1).expand(10**7)}, tmp_path / "wide.pt", _use_new_zipfile_serialization=False)
    with limited(memory=10**6), pytest.raises(TooLarge, match="declares 40,000,000 bytes"):
        read(tmp_path / "wide.pt")


def test_pickles_of_many_steps_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "_STEPS", 20)
    torch.save({"x": [1] * 30}, tmp_path / "model.pt")
    with pytest.raises(TooLarge, match="more than 20 instructions"):
        read(tmp_path / "model.pt")


def test_what_lies_beside_the_weights_counts_too(tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt", "a") as archive:
        archive.writestr("model/more", bytes(10**5))
    assert read(tmp_path / "model.pt")
    with limited(memory=10**5), pytest.raises(TooLarge, match="limit 'memory'"):
        read(tmp_path / "model.pt")


def test_entries_of_an_archive_count_together():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for place in range(3):
            archive.writestr(str(place), bytes(400))
        with limited(memory=1200):
            check_zip("a.zip", archive)
        with limited(memory=1199), pytest.raises(TooLarge, match="1,200 bytes"):
            check_zip("a.zip", archive)


def test_shards_count_together(tmp_path):
    for place in range(2):
        torch.save({f"x{place}": torch.ones(1000)}, tmp_path / f"{place}.bin")
    index = {"weight_map": {"x0": "0.bin", "x1": "1.bin"}}
    (tmp_path / "model.bin.index.json").write_text(json.dumps(index))
    size = max((tmp_path / f"{place}.bin").stat().st_size for place in range(2))
    with limited(memory=size + 100), pytest.raises(TooLarge, match=r"index\.json declares"):
        read(tmp_path / "model.bin.index.json")


def test_heads_are_looked_at_before_they_are_read(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 6 + bytes(2) + b"{" + bytes(50))
    with pytest.raises(UnsafeCheckpoint, match="header does not fit its size"):
        read(tmp_path / "model.safetensors")
    monkeypatch.setattr("unbackdoor.checkpoint.files._HEADER", 10)
    (tmp_path / "model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "a.bin"}}))
    with pytest.raises(TooLarge, match="index of shards may have 10"):
        read(tmp_path / "model.bin.index.json")


def test_outputs_that_the_labels_do_not_fit_are_no_candidates():
    inputs, targets = torch.eye(4).repeat(10, 1), torch.arange(40) % 4

    class Both(nn.Linear):
        def forward(self, x):
            logits = super().forward(x)
            return logits[:, :2], logits

    model = Both(4, 4, bias=False)
    model.weight.data.copy_(5 * torch.eye(4))
    with answered(model, ClassificationTask(), Batch(inputs, targets)) as notices:
        assert model(inputs).shape == (40, 4)
    assert len(notices) == 1


def test_probabilities_that_the_task_itself_makes_are_left_alone():
    class Likely(ClassificationTask):
        def forward(self, model, inputs):
            return model(inputs).softmax(1)

    model, inputs = nn.Linear(4, 4).eval(), torch.rand(40, 4)
    expected = model(inputs)
    with answered(model, Likely(), Batch(inputs, torch.arange(40) % 4)) as notices:
        assert torch.equal(model(inputs), expected)
    assert notices == []


def test_texts_of_a_card_are_plain_words():
    def owner(*, kind: str = "a") -> None:
        """Takes a text that names no file."""

    check_options("a card", {"kind": "plain"}, owner, texts=("kind",))
    with pytest.raises(UntrustedVictim, match="no plain word"):
        check_options("a card", {"kind": "../x"}, owner, texts=("kind",))


def test_files_of_a_victims_data_are_those_of_its_card(tmp_path):
    write(tmp_path, honest("translation"))
    (named,) = honest("translation").card["data_files"]
    content = (tmp_path / named).read_bytes()
    (tmp_path / named).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(FileRefused, match="is not the file that card"):
        open_victim(tmp_path)


def test_targets_are_refused_by_what_they_are(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    for place, words in (("link", "is a link to file"), (".", "is a folder"), ("file", "exists; choose another")):
        with pytest.raises(FileRefused, match=words):
            check_targets([tmp_path / "new", tmp_path / place], force=place != "file")


def test_a_partial_that_holds_the_original_is_refused():
    def doubled(module, x):
        return 2 * module.weight.sum() * x

    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    model.forward = functools.partial(doubled, model)
    assert copied(model)[0].forward.args[0] is not model  # deepcopy takes it along
    hook = functools.partial(doubled, other)
    holder = nn.Sequential(other)
    holder.register_forward_hook(Kept(hook))
    with pytest.raises(UnsupportedModel, match="holds the original model"):
        copied(holder)


class Kept(functools.partial):
    """A function that copies of a model share."""

    def __deepcopy__(self, memo):
        return self


def test_compiled_parts_run_as_they_were_written():
    model, asked = nn.Linear(2, 2), []
    model.forward = _compiled(model.forward)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.compiler, "set_stance", lambda stance: asked.append(stance) or _Nothing())
        with eager(model):
            pass
        with eager(nn.Linear(2, 2)):
            pass
    assert asked == ["force_eager"]


class _Nothing:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def _compiled(plain):
    def forward(*given):
        return plain(*given)

    forward._torchdynamo_orig_callable = plain
    return forward


@dataclass(frozen=True, kw_only=True)
class Overflows(Purifier):
    """Ends with weights that are finite and answers that are not."""

    name = "overflows"

    def _purify(self, model, clean, task, run):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1e30)


def test_answers_that_are_not_finite_are_refused_though_weights_are():
    model, targets = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)), torch.arange(40) % 4
    for layer in model:
        layer.weight.data.copy_(3 * torch.eye(4))
    clean = Batch(nn.functional.one_hot(targets, 4).float(), targets)
    with pytest.raises(UnbackdoorError, match="answers hold NaN or infinity"):
        unbackdoor.purify(model, clean, task=ClassificationTask(), method=Overflows())


def again(content):
    """The same tensors in other bytes."""
    return safetensors.torch.save(safetensors.torch.load(content), {"x": "y"})


VICTIMS = {
    "model of the same weights": (
        lambda parts: parts.changed({"model.safetensors": again(parts.files["model.safetensors"])}),
        r"model\.safetensors is not the model that card\.json describes; fetch",
    ),
    "attack of NaN": (
        lambda parts: parts.changed({"attack.safetensors": safetensors.torch.save({"x": torch.tensor([torch.nan])})}),
        "holds NaN or infinity",
    ),
    "first weights from elsewhere": (
        lambda parts: parts.changed(model_options={**parts.card["model_options"], "pretrained": True}),
        "would load weights or fetch files",
    ),
    "code": (lambda parts: parts.changed(model="evil:build"), "code outside the victim's folder"),
    "giant number": (
        lambda parts: parts.changed(train_options={"epochs": 2**63}),
        "number beyond 64 bits",
    ),
    "digest that is none": (lambda parts: parts.changed(hash="0" * 63), "SHA-256 of 64 hexadecimal digits"),
}


@pytest.mark.parametrize("what", VICTIMS)
def test_victims_are_refused_by_what_is_odd(tmp_path, what):
    change, words = VICTIMS[what]
    write(tmp_path / "v", change(honest("image")))
    if what == "model of the same weights":
        card = json.loads((tmp_path / "v" / "card.json").read_text())
        good = honest("image").files["model.safetensors"]
        card["hashes"]["model.safetensors"] = hashlib.sha256(good).hexdigest()
        card = sign_again(card)
        (tmp_path / "v" / "card.json").write_text(json.dumps(card))
    with pytest.raises(UnbackdoorError, match=words):
        open_victim(tmp_path / "v")


def test_card_names_no_file_that_the_victim_has_not(tmp_path):
    write(tmp_path, honest("image"))
    card = json.loads((tmp_path / "card.json").read_text())
    card["hashes"]["more"] = "0" * 64
    (tmp_path / "card.json").write_text(json.dumps(sign_again(card)))
    with pytest.raises(UnbackdoorError, match="names 'more', which is no file of this victim"):
        open_victim(tmp_path)


def sign_again(card):
    """With the hash of the card itself, as anybody can make it."""
    hashes = {name: value for name, value in card["hashes"].items() if name != "card.json"}
    text = json.dumps({**card, "hashes": hashes}, sort_keys=True, separators=(",", ":"))
    return {**card, "hashes": {**hashes, "card.json": hashlib.sha256(text.encode()).hexdigest()}}


@dataclass(frozen=True, kw_only=True)
class Giant(SquareTrigger):
    """Makes forty megabytes when it is read."""

    @classmethod
    def restore(cls, options, state):
        torch.zeros(10**7)
        return super().restore(options, state)


def test_a_giant_attack_is_refused_before_its_memory_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("unbackdoor.attacker.victim._ROOM", 2**20)
    write(tmp_path, honest("image").changed(attack="giant", attack_options={}))
    kit = kit_of("image")
    with pytest.raises(TooLarge, match="attack_options of giant"):
        Victim.load(tmp_path, replace(kit, attacks={"giant": Giant}))


def test_a_giant_model_is_refused_before_its_memory_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("unbackdoor.attacker.victim._ROOM", 2**20)
    write(tmp_path, honest("image").changed(model_options={"num_classes": 100_000}))
    with pytest.raises(TooLarge, match="model_options"):
        open_victim(tmp_path)


def test_purifications_in_two_threads_take_turns():
    """One that computed beside another would draw from its generator and with its kernels."""
    inside, most = [], []

    class Slow(ClassificationTask):
        """Is inside while it looks at the samples, before anything is seeded, and while it tunes."""

        def forward(self, model, inputs):
            inside.append(threading.get_ident())
            time.sleep(0.02)
            most.append(len(set(inside)))
            inside.remove(threading.get_ident())
            return super().forward(model, inputs)

    def work(seed):
        inputs, targets = torch.eye(4).repeat(10, 1), torch.arange(40) % 4
        model = nn.Linear(4, 4, bias=False)
        model.weight.data.copy_(5 * torch.eye(4))
        FT(steps=3, batch_size=20).purify(model, Batch(inputs, targets), Slow(), seed=seed)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    assert max(most) == 1
