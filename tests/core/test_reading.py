"""The layer between a file and its parser: limits, one kind of error, and no memory before a look."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from unbackdoor.errors import BadData, BadOption, FileRefused, TooLarge
from unbackdoor.files.reading import (
    Limits,
    check_bytes,
    check_classes,
    check_file,
    limited,
    limits,
    path_below,
    read_json,
    read_npy,
    read_npz,
    read_text,
    reading,
    shown,
)
from unbackdoor.testing import check_reader


class PanicException(BaseException):
    """What a parser in Rust raises."""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("odd"),
        KeyError("a"),
        RecursionError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"),
        EOFError(),
        SyntaxError("x"),
        OSError("no number"),
        zipfile.BadZipFile("x"),
        AssertionError(),
        PanicException("panicked"),
        RuntimeError("two\nlines"),
    ],
)
def test_whatever_a_parser_raises_names_the_file(error: BaseException) -> None:
    message = rf"^a\.bin cannot be read \({type(error).__name__}.*; fetch it again\.$"
    with pytest.raises(BadData, match=message), reading("a.bin", "fetch it again"):
        raise error


def test_the_system_and_memory_have_errors_of_their_own() -> None:
    with pytest.raises(FileRefused, match=r"cannot read a\.bin: Permission denied"), reading("a.bin"):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(TooLarge, match="memory"), reading("a.bin"):
        raise MemoryError
    for passing in (TooLarge("x"), KeyboardInterrupt(), SystemExit(2)):
        with pytest.raises(type(passing)) as caught, reading("a.bin"):
            raise passing
        assert caught.value is passing


def test_limits_hold_inside_and_can_be_nested() -> None:
    before = limits()
    with limited(pixels=5), limited(classes=7) as inner:
        assert (inner.pixels, inner.classes, inner.memory) == (5, 7, before.memory)
        seen: list[Limits] = []
        thread = threading.Thread(target=lambda: seen.append(limits()))
        thread.start()
        thread.join()
        assert seen == [Limits()]
    assert limits() == before
    for bad in ({"pixel": 1}, {"pixels": 0}, {"pixels": True}, {"pixels": "many"}):
        with pytest.raises(BadOption), limited(**bad):  # type: ignore[arg-type]
            pass


def test_sizes_are_judged_by_both_limits() -> None:
    check_bytes("x", 2**26, 1)
    with pytest.raises(TooLarge, match="'ratio'"):
        check_bytes("x", 2**26 + 1, 1)
    with pytest.raises(TooLarge, match="'memory'"):
        check_bytes("x", 2**40)
    with limited(ratio=2**27):
        check_bytes("x", 2**26 + 1, 1)
    assert check_classes("x", 100_000) == 100_000
    with pytest.raises(TooLarge, match="largest label in x is 4,294,967,295"):
        check_classes("x", 2**32)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert check_file(tmp_path / "link") == tmp_path / "link"
    for name in ("pipe", "loop", "zero", ".", "missing", "a\0b"):
        with pytest.raises(FileRefused):
            check_file(tmp_path / name)
    with pytest.raises(TooLarge):
        check_file(tmp_path / "file", at_most=2)


def test_names_in_lists_stay_below_their_folder(tmp_path: Path) -> None:
    assert path_below(tmp_path, "a/../b.png", "list") == tmp_path / "b.png"
    for name in ("../b.png", "/etc/passwd", "a/../../b.png"):
        with pytest.raises(FileRefused, match="outside"):
            path_below(tmp_path, name, "list")


def test_names_are_shown_without_control_characters() -> None:
    assert shown("a\x1b[31m\nb\udcff") == "a\\x1b[31m\\nb\\udcff"
    assert shown("gr\u00fcn \u4e2d") == "gr\u00fcn \u4e2d"


# --------------------------------------------------------------------------------------------- arrays and bombs


def npy(shape: tuple[int, ...], kind: str = "<f4", content: bytes = b"") -> bytes:
    """An array file that declares ``shape`` whatever it holds."""
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content


def packed(**entries: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def test_arrays_come_back_as_they_were_saved(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "c": np.array(3),
        "d": np.zeros((0, 4)),
        "e": np.array(["x", "yy"]),
        "f": np.arange(3, dtype=">i2"),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
        found = read_npz(tmp_path / "a.npz")
        assert found.keys() == arrays.keys()
        assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
        assert all(found[name].flags.writeable for name in arrays)
    np.save(tmp_path / "b.npy", arrays["b"])
    assert np.array_equal(read_npy(tmp_path / "b.npy"), arrays["b"])


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (npy((10**12,)), TooLarge, "memory"),
        (npy((10**9, 10**9, 10**9)), TooLarge, "memory"),
        (npy((1000,), content=b"abc"), BadData, "ends too early"),
        (npy((-3,)), BadData, "shape"),
        (npy((2,), "|O"), BadData, "unpickling"),
        (npy((2,), "|V0"), BadData, "itemsize"),
        (b"", BadData, "EOFError|ValueError"),
        (b"\x93NUMPY\x09\x00", BadData, "format|cannot be read"),
        (b"\x93NUMPY\x03\x00" + bytes(9), BadData, "format"),
        (b"\x80\x04N.", BadData, "cannot be read"),
    ],
)
def test_arrays_that_declare_too_much_or_are_none_are_refused(
    content: bytes, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    (tmp_path / "a.npz").write_bytes(packed(x=content))
    with pytest.raises(error, match=message):
        read_npy(tmp_path / "a.npy")
    with pytest.raises(error, match=message):
        read_npz(tmp_path / "a.npz")


def test_zeros_that_unpack_to_far_more_are_refused_and_an_honest_few_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(packed(x=npy((2**24 + 99,), "<f4", bytes(2**26 + 396))))
    with pytest.raises(TooLarge, match="'ratio'"):
        read_npz(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", labels=np.zeros(500_000, np.int64))
    assert len(read_npz(tmp_path / "b.npz")["labels"]) == 500_000
    with limited(memory=1000), pytest.raises(TooLarge, match="'memory'"):
        read_npz(tmp_path / "b.npz")


@pytest.mark.parametrize("count", [2000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_damaged_arrays_end_in_one_error(count: int, tmp_path: Path) -> None:
    whole = npy((2, 3), "<i2", bytes(12))
    check_reader(read_npz, {"a.npz": packed(x=whole, y=whole)}, tmp_path, count=count)
    check_reader(read_npy, {"a.npy": whole}, tmp_path, count=count)


# ----------------------------------------------------------------------------------------------- text and JSON


def test_text_is_unpacked_and_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffa\r\nb\u00fc".encode())
    assert read_text(tmp_path / "a.txt") == "a\nb\u00fc"
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"x" * 5000))
    assert len(read_text(tmp_path / "a.txt.gz")) == 5000
    with limited(text=4999), pytest.raises(TooLarge, match="'text'"):
        read_text(tmp_path / "a.txt.gz")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\0")
    with pytest.raises(BadData, match="UTF-8"):
        read_text(tmp_path / "b.txt")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "3", "9" * 10_000, '{"a": nul}', "{" * 9])
def test_json_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadData, match=r"a\.json"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("count", [2000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_damaged_text_ends_in_one_error(count: int, tmp_path: Path) -> None:
    text = json.dumps({"a": [1, "b", {"c": None}]}).encode()
    check_reader(read_json, {"a.json": text, "a.json.gz": gzip.compress(text)}, tmp_path, count=count)
