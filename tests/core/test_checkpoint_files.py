"""Files that are no weights, are damaged or declare too much: what they are is said, and nothing of ours leaks."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from unbackdoor.checkpoint import load, read
from unbackdoor.checkpoint.files import read_content
from unbackdoor.errors import FileRefused, TooLarge, UnbackdoorError, UnsafeCheckpoint
from unbackdoor.files.reading import limited
from unbackdoor.testing import check_reader

STATE = {"weight": torch.arange(4.0).view(2, 2), "bias": torch.ones(2)}


def saved(content=STATE, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def packed(**entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in entries.items():
            file.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("model.pt"))
    return buffer.getvalue()


def arrays():
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(2))
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 46827520\n"
OTHERS = {
    "LFS pointer": (POINTER, "Git LFS pointer.*git lfs pull"),
    "annex pointer": (b"/annex/objects/SHA256E-s1--00.pt\n", "git-annex"),
    "web page": (b"\n<!DOCTYPE html>\n<html><head>", r"web page \(HTML\).*download"),
    "web page without a doctype": (b"<html lang=en>", "web page"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "XML"),
    "JSON": (b'{"error": "not found"}', "text in JSON"),
    "text": (b"Not Found", "text that begins with 'Not Found'"),
    "text with escapes": (b"\x1b[31mred", r"begins with '\\x1b\[31mred'"),
    "empty": (b"", "empty"),
    "zeros": (bytes(5000), "zeros"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "gzip": (gzip.compress(saved()), "compressed with gzip"),
    "tar": (tarred(), "tar archive"),
    "numpy array": (b"\x93NUMPY\x01\x00", "numpy array"),
    "numpy arrays": (arrays(), r"numpy arrays \(\.npz\)"),
    "zip": (packed(README="x"), r"zip archive.*README"),
    "cut zip": (saved()[:-100], "damaged zip archive"),
    "TorchScript": (packed(m__constants="", **{"m__constants.pkl": b"", "m__code__a.py": b""}), "TorchScript.*sandbox"),
    "plain pickle": (b"\x80\x04\x95\x00", "plain pickle.*sandbox"),
    "GGUF": (b"GGUF\x03\x00\x00\x00", "GGUF"),
    "picture": (b"\x89PNG\r\n\x1a\n", "picture"),
    "noise": (bytes(range(128, 256)) * 9, "no known kind"),
}


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("what", OTHERS)
def test_file_that_holds_no_weights_is_called_what_it_is(tmp_path, what, suffix):
    content, words = OTHERS[what]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    if suffix == ".safetensors" and what == "noise":
        words = "no safetensors file, or was cut off"
    with pytest.raises(UnsafeCheckpoint, match=words) as error:
        load(nn.Linear(2, 2), path)
    assert str(error.value).startswith(f"{path} ")
    assert str(error.value).isprintable()
    if what not in ("plain pickle", "TorchScript"):
        assert "code" not in str(error.value)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".safetensors", ""])
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_name_of_a_file_decides_nothing(tmp_path, form, suffix):
    content = {"safetensors": safetensors.torch.save(STATE), "zip": saved(),
               "legacy": saved(_use_new_zipfile_serialization=False)}[form]  # fmt: skip
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    model = nn.Linear(2, 2)
    assert load(model, path) == []
    assert torch.equal(model.weight, STATE["weight"])


def with_header(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape, end, dtype="F32", begin=0):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}


HEADERS = {
    "nested": with_header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "list nested": with_header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "longer than the file": (10**15).to_bytes(8, "little") + b"{}",
    "shape beyond the data": with_header(entry([10**12], 4), bytes(4)),
    "shape that overflows": with_header(entry([2**40, 2**40], 0)),
    "offsets beyond the data": with_header(entry([1], 10**12), bytes(4)),
    "offsets turned round": with_header(entry([1], 0, begin=4), bytes(4)),
    "negative": with_header(entry([-1], 4), bytes(4)),
    "no such type": with_header(entry([1], 4, dtype="X9"), bytes(4)),
    "hole": with_header(entry([1], 8, begin=4), bytes(8)),
    "no object": with_header(b"{]"),
    "not UTF-8": with_header(b'{"\xff\xfe": 1}'),
    "metadata that are no texts": with_header({"__metadata__": {"a": 1}}),
    "extra states that are none": with_header({"__metadata__": {"_extra_state": "["}, **entry([1], 4)}, bytes(4)),
    "extra states that are a number": with_header({"__metadata__": {"_extra_state": "3"}, **entry([1], 4)}, bytes(4)),
    "extra states nested": with_header({"__metadata__": {"_extra_state": "[" * 10**5}, **entry([1], 4)}, bytes(4)),
}


@pytest.mark.parametrize("what", HEADERS)
def test_odd_safetensors_are_refused(tmp_path, what):
    path = tmp_path / "model.safetensors"
    path.write_bytes(HEADERS[what])
    with pytest.raises((UnsafeCheckpoint, TooLarge)):
        read(path)


def test_giant_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((100 * 2**20).to_bytes(8, "little") + b"{")
        file.truncate(101 * 2**20)  # a hole: takes no room on the disk
    with pytest.raises(TooLarge, match="header of 104,857,600 bytes"):
        read(path)


@pytest.mark.parametrize("head", [with_header(entry([2**38], 2**40)), saved(_use_new_zipfile_serialization=False)])
def test_file_of_a_terabyte_of_holes_is_refused(tmp_path, head):
    path = tmp_path / "model.bin"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(2**40 + len(head))
    with pytest.raises(TooLarge, match="limit 'memory'"):
        read(path)


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_limit_of_memory_holds_for_every_form(tmp_path, form):
    state, path = {"w": torch.zeros(10_000)}, tmp_path / "m.pt"
    path.write_bytes(safetensors.torch.save(state) if form == "safetensors" else
                     saved(state, _use_new_zipfile_serialization=form == "zip"))  # fmt: skip
    read(path)
    with limited(memory=30_000), pytest.raises(TooLarge):
        read(path)


def test_repeated_values_count_in_full(tmp_path):
    torch.save({"mask": torch.ones(1).expand(100, 100)}, tmp_path / "m.pt")
    assert read(tmp_path / "m.pt")[0]["mask"].shape == (100, 100)
    torch.save({"mask": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "m.pt")
    with pytest.raises(TooLarge):
        read(tmp_path / "m.pt")


@pytest.mark.parametrize("what", ["device", "pipe", "link to a device", "absent", "null byte", "broken link"])
def test_only_regular_files_are_opened(tmp_path, what):
    path = tmp_path / "m.pt"
    if what == "device":
        path = "/dev/zero"
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "link to a device":
        path.symlink_to("/dev/zero")
    elif what == "broken link":
        path.symlink_to(tmp_path / "nowhere")
    elif what == "null byte":
        path = "m\0.pt"
    with pytest.raises(FileRefused):
        read(path)


def test_loads_in_threads_leave_the_allow_list_as_it_was(tmp_path):
    class Mine:
        pass

    torch.serialization.add_safe_globals([Mine])
    before = set(torch.serialization.get_safe_globals())
    torch.save({"model": STATE, "acc": np.float64(3), "log": [np.arange(3)] * 50}, tmp_path / "m.pt")
    failures = []

    def work():
        for _ in range(10):
            try:
                load(nn.Linear(2, 2), tmp_path / "m.pt")
            except UnbackdoorError as error:
                failures.append(error)

    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert set(torch.serialization.get_safe_globals()) == before
    finally:
        torch.serialization.clear_safe_globals()


BESIDE = {"net": STATE, "acc": np.float64(3), "log": np.arange(3), "ema": {"module.weight": torch.ones(2, 2)}}
FORMS = {
    "safetensors": lambda: {
        "m.safetensors": safetensors.torch.save(STATE, {"format": "pt", "_extra_state": '{"a": 1}'})
    },
    "zip": lambda: {"m.pt": saved(BESIDE)},
    "legacy": lambda: {"m.pt": saved(BESIDE, _use_new_zipfile_serialization=False)},
    "index": lambda: {"m.index.json": json.dumps({"weight_map": {"weight": "a.bin", "bias": "a.bin"}}).encode()},
}


@pytest.mark.parametrize(("form", "kind"), [("zip", b"f8"), ("legacy", b"f8"), ("legacy", b"S8")])
def test_numpy_makes_nothing_of_what_a_file_says(tmp_path, form, kind):
    """Its methods believe any state: an ``S8`` of width -1, which is what ``f8`` has, writes beyond its memory."""
    (name, whole), *_ = FORMS[form]().items()
    (tmp_path / name).write_bytes(whole.replace(b"f8", kind))
    found = read_content(tmp_path / name).tree
    assert torch.equal(found["net"]["weight"], STATE["weight"])
    assert not any(type(found[key]).__module__.startswith("numpy") for key in ("acc", "log"))


def fuzz(folder, form, count):
    (folder / "a.bin").write_bytes(saved())
    model = nn.Linear(2, 2)

    check_reader(read if form == "safetensors" else lambda path: load(model, path), FORMS[form](), folder, count=count)


@pytest.mark.parametrize("form", FORMS)
def test_damaged_file_ends_in_an_error_of_ours(tmp_path, form):
    fuzz(tmp_path, form, 2000)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_damaged_file_ends_in_an_error_of_ours_many_times(tmp_path, form):
    fuzz(tmp_path, form, 50_000)
