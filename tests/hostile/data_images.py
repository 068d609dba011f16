"""Hostile images and label rows, made at run time: other kinds under an image's name, bombs, odd folders and tables."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hostile.pictures import encoded, table, written
from hostile.samples import ESCAPES, HostileData, odd_files

__all__ = ["POSTSCRIPT", "hostile_data_images", "other_kinds", "picture_bombs"]

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(RAN) (w) file closefile\nshowpage\n"
GREY = np.full((4, 4, 3), 9, np.uint8)


class _Evil:
    """Unpickled, it leaves a file in the current folder."""

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return exec, ("open('RAN', 'w').close()",)


def other_kinds() -> Iterator[tuple[str, bytes]]:
    """Contents that Pillow or others would hand to a program or a large parser, whatever the file is called."""
    yield "PostScript", POSTSCRIPT
    yield (
        "PostScript behind a preview",
        struct.pack("<I6IH", 0xC6D3D0C5, 30, len(POSTSCRIPT), 0, 0, 0, 0, 0) + POSTSCRIPT,
    )
    yield "PDF", b"%PDF-1.4\n1 0 obj\n<</OpenAction<</S/Launch/F(/bin/sh)>>>>\nendobj\n"
    yield "a metafile", b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 9, 9, 72) + bytes(40)
    yield "an enhanced metafile", b"\x01\0\0\0" + bytes(36) + b" EMF" + bytes(60)
    yield (
        "SVG that refers to a file",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    )
    yield "a MVG script", b"push graphic-context\nfill 'url(https://localhost/\"|touch RAN\")'\npop graphic-context\n"
    yield "FITS", b"SIMPLE  =                    T".ljust(2880)
    yield "HDF5", b"\x89HDF\r\n\x1a\n" + bytes(600)
    yield "a pickle", pickle.dumps(_Evil())
    yield "Python", b"open('RAN', 'w').close()\n"
    yield "a shell script", b"#!/bin/sh\ntouch RAN\n"
    yield "a zip", _zip({"RAN": b"x"})


def picture_bombs() -> Iterator[tuple[str, bytes]]:
    """A few bytes that declare a picture of gigabytes."""
    side = 2**17
    yield "a PNG", _png(side, side)
    yield "a PNG whose text unpacks without end", _png(4, 4, (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24))))
    yield "a PNG whose profile unpacks without end", _png(4, 4, (b"iCCP", b"a\0\0" + zlib.compress(bytes(2**24))))
    yield (
        "a GIF",
        b"GIF89a" + struct.pack("<2H", 65535, 65535) + b"\0\0\0," + struct.pack("<4H", 0, 0, 65535, 65535) + b"\0\2",
    )
    yield "a BMP", b"BM" + struct.pack("<I2HI", 54, 0, 0, 54) + struct.pack("<I2i2H6I", 40, side, side, 1, 24, *[0] * 6)
    yield "a PPM", b"P6\n%d %d\n255\n" % (side, side)
    yield "a TIFF", _tiff(side)
    yield "a WebP", b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0\x2f" + struct.pack("<I", 16383 | 16383 << 14) + bytes(9)
    yield "a JPEG", b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">2H", 65500, 65500) + b"\3\1\x11\0\2\x11\0\3\x11\0"


def hostile_data_images() -> Iterator[HostileData]:
    """All cases."""
    for name, content in (*other_kinds(), *picture_bombs()):
        yield HostileData(f"an image is {name}", "image", partial(_picture, content), harmless="profile" in name)
        yield HostileData(
            f"a listed image is {name}", "multilabel", partial(_listed, content), harmless="profile" in name
        )
        made = partial(table, [0, 1], [content, encoded()])
        yield HostileData(f"a cell holds {name}", "image", partial(_parquet, made), harmless="profile" in name)
    for name, change in odd_files(lambda place: place / "data" / "a" / "1.png"):
        left = name in ("a pipe", "a folder", "a link to a device", "a link to itself", "a link to nothing")
        yield HostileData(f"an image is {name}", "image", partial(_changed, change), harmless=left)
    for name, change in odd_files(lambda place: place / "data" / "a.npz"):
        yield HostileData(f"arrays are {name}", "image", partial(_arrays_changed, change))
    for name, change in odd_files(lambda place: place / "data" / "a.parquet"):
        yield HostileData(f"a table is {name}", "image", partial(_table_changed, change))
    for name, (change, harmless) in _FOLDERS.items():
        options = {"order": "number"} if "number" in name else {}
        yield HostileData(f"class folders with {name}", "image", partial(_changed, change), options, harmless)
    for name, make in _TABLES.items():
        yield HostileData(f"a table {name}", "image", partial(_parquet, make), harmless=name.startswith("with odd"))
    for name, content in _archives():
        yield HostileData(f"arrays {name}", "image", partial(_file, "a.npz", content))
    for name, file, content in _tensors():
        yield HostileData(f"tensors {name}", "image", partial(_file, file, content))
    for name, line in _lines():
        yield HostileData(f"a list {name}", "multilabel", partial(_lines_of, line))


# ------------------------------------------------------------------------------------------------ where they lie


def _lay(place: Path) -> Path:
    for name in "ab":
        (place / "data" / name).mkdir(parents=True)
        (place / "data" / name / "1.png").write_bytes(encoded(GREY))
    (place / "outside" / "secret.png").write_bytes(encoded(GREY))
    return place / "data"


def _picture(content: bytes, place: Path) -> Path:
    root = _lay(place)
    (root / "a" / "1.png").write_bytes(content)
    return root


def _changed(change: Callable[[Path], Any], place: Path) -> Path:
    root = _lay(place)
    change(place)
    return root


def _file(name: str, content: bytes, place: Path) -> Path:
    (place / "data").mkdir()
    (place / "data" / name).write_bytes(content)
    return place / "data" / name


def _parquet(make: Callable[[], pa.Table], place: Path) -> Path:
    return _file("a.parquet", written(make(), compression="zstd"), place)


def _arrays_changed(change: Callable[[Path], Any], place: Path) -> Path:
    path = _file("a.npz", b"", place)
    np.savez(place / "outside" / "secret.npz", images=[GREY] * 2, labels=[0, 1])
    change(place)
    return path


def _table_changed(change: Callable[[Path], Any], place: Path) -> Path:
    path = _file("a.parquet", b"", place)
    change(place)
    return path


def _listed(content: bytes, place: Path) -> Path:
    root = _lines_of('{"file_name": "2.png", "labels": ["a"]}', place)
    (root / "2.png").write_bytes(content)
    return root


def _lines_of(line: str, place: Path) -> Path:
    root = place / "data"
    root.mkdir()
    (root / "1.png").write_bytes(encoded(GREY))
    (place / "outside" / "secret.png").write_bytes(encoded(GREY))
    (root / "metadata.jsonl").write_text('{"file_name": "1.png", "labels": ["b"]}\n' + line)
    return root


# --------------------------------------------------------------------------------------------------- the contents


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = (b"IDAT", zlib.compress(b"".join(b"\0" + bytes(12) for _ in range(4))))
    made = b"\x89PNG\r\n\x1a\n"
    for kind, content in (head, *chunks, rows, (b"IEND", b"")):
        made += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return made


def _tiff(side: int) -> bytes:
    tags = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, side), (279, 4)]
    entries = b"".join(struct.pack("<2H2I", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def _zip(entries: dict[str, bytes], **options: Any) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content, **options)
    return out.getvalue()


def _npy(shape: tuple[int, ...], kind: str = "|u1", content: bytes = b"") -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content


def _saved(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **{name: np.array(array) for name, array in arrays.items()})
    return out.getvalue()


def _archives() -> Iterator[tuple[str, bytes]]:
    images, labels = _npy((2, 4, 4, 3), content=bytes(96)), _npy((2,), content=b"\0\1")
    yield "with pickles", _saved(images=np.array([_Evil()], dtype=object), labels=[0])
    yield "with a pickle in an array's place", _zip({"images.npy": pickle.dumps(_Evil()), "labels.npy": labels})
    yield "with one label beyond all memory", _saved(images=[GREY] * 2, labels=[0, 4294967295])
    yield "with a label of 64 bits", _saved(images=[GREY] * 2, labels=np.array([0, 2**64 - 1], np.uint64))
    yield "with a negative label", _saved(images=[GREY] * 2, labels=[0, -1])
    yield "with texts for labels", _saved(images=[GREY] * 2, labels=[ESCAPES, "b"])
    yield "that declare a terabyte", _zip({"images.npy": _npy((10**6, 10**6)), "labels.npy": labels})
    yield "that declare more than numbers hold", _zip({"images.npy": _npy((2**40, 2**40)), "labels.npy": labels})
    yield (
        "of zeros that unpack without end",
        _zip({"images.npy": _npy((2**26 + 9,), content=bytes(2**26 + 9)), "labels.npy": labels}),
    )
    yield "of a negative shape", _zip({"images.npy": _npy((-2, 4, 4, 3)), "labels.npy": labels})
    yield "with code in their header", _zip({"images.npy": _npy((2,), "'+__import__('os').system('touch RAN')+'")})
    yield "with a header without end", _zip({"images.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f"})
    yield "with names that lead outside", _zip({"../outside/secret.npy": images, "labels.npy": labels})
    yield "with names that move the cursor", _zip({f"{ESCAPES}.npy": images, "labels.npy": labels})
    yield "of NaN", _saved(images=np.full((2, 4, 4, 3), np.nan), labels=[0, 1])
    yield "of complex numbers", _saved(images=np.ones((2, 4, 4, 3), complex), labels=[0, 1])
    yield "of dates", _saved(images=np.zeros((2, 4, 4, 3), "M8[s]"), labels=[0, 1])


def _tensors() -> Iterator[tuple[str, str, bytes]]:
    for name, content in (
        ("that are a pickle", pickle.dumps(_Evil())),
        ("that are an old pickle", _torch(_Evil(), old=True)),
    ):
        yield name, "a.pt", content
    yield "with a pickle beside them", "b.pt", _torch({"images": torch.zeros(2, 3, 4, 4), "labels": _Evil()})
    repeated = torch.zeros(1, dtype=torch.uint8).expand(2**20, 3, 64, 64)
    yield "that repeat one byte", "a.pth", _torch({"images": repeated, "labels": torch.zeros(1).long().expand(2**20)})
    huge = {"images": {"dtype": "F32", "shape": [2**40, 3, 64, 64], "data_offsets": [0, 2**62]}}
    yield "that declare more than there is", "a.safetensors", _safetensors(json.dumps(huge).encode())
    yield "with a header without end", "b.safetensors", struct.pack("<Q", 2**62) + b"{}"
    yield "with a deep header", "c.safetensors", _safetensors(b"[" * 100_000)


def _torch(content: Any, *, old: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=not old)
    return out.getvalue()


def _safetensors(head: bytes) -> bytes:
    return struct.pack("<Q", len(head)) + head


def _lines() -> Iterator[tuple[str, str]]:
    yield "names a file above it", '{"file_name": "../outside/secret.png", "labels": ["a"]}'
    yield "names a file by its whole path", '{"file_name": "/etc/passwd", "labels": ["a"]}'
    yield "names a device", '{"file_name": "/dev/zero", "labels": ["a"]}'
    yield "names an address", '{"file_name": "http://127.0.0.1:9/a.png", "labels": ["a"]}'
    yield "names what moves the cursor", json.dumps({"file_name": ESCAPES, "labels": ["a"]})
    yield "names a null byte", json.dumps({"file_name": "1.png\0", "labels": ["a"]})
    yield "holds a huge class number", '{"file_name": "1.png", "labels": [4294967295]}'
    yield "holds a number without end", '{"file_name": "1.png", "labels": [' + "9" * 9999 + "]}"
    yield "is deep", "[" * 100_000
    yield "holds null", '{"file_name": "1.png", "labels": null}'
    yield "holds no list", '{"file_name": "1.png", "labels": "ab"}'


def _repeating(size: int, rows: int) -> pa.Table:
    cells = pa.DictionaryArray.from_arrays(
        pa.array([0] * rows, pa.int32()), pa.array([b"x" * size])
    ).dictionary_decode()
    return pa.table({"image": pa.StructArray.from_arrays([cells], names=["bytes"]), "label": [0] * rows})


def _with_type(extension: str, content: bytes) -> pa.Table:
    field = pa.field(
        "image", pa.binary(), metadata={"ARROW:extension:name": extension, "ARROW:extension:metadata": content}
    )
    return pa.table(
        [pa.array([b"x", b"y"]), pa.array([0, 1])], schema=pa.schema([field, pa.field("label", pa.int64())])
    )


def _labelled(*labels: Any, **options: Any) -> Callable[[], pa.Table]:
    return lambda: table(pa.array(labels), [encoded(GREY)] * len(labels), **options)


_TABLES: dict[str, Callable[[], pa.Table]] = {
    "whose rows repeat one picture": partial(_repeating, 2**18, 1000),
    "of zeros": lambda: pa.table({"image": [bytes(2**26 + 9)], "label": [0]}),
    "with a type that is a pickle": partial(_with_type, "arrow.py_extension_type", pickle.dumps(_Evil())),
    "with a type that nobody knows": partial(_with_type, ESCAPES, b"x"),
    "with paths for pictures": lambda: pa.table({"image": [{"bytes": None, "path": "/etc/passwd"}], "label": [0]}),
    "with addresses for pictures": lambda: pa.table({"image": ["http://127.0.0.1:9/a.png"], "label": [0]}),
    "with one label beyond all memory": _labelled(0, 4294967295),
    "with a label of 63 bits": _labelled(0, 2**63 - 1),
    "with a negative label": _labelled(0, -1),
    "with null labels": _labelled(0, None),
    "with lists for labels": _labelled(["a"], ["b"]),
    "with true and false for labels": _labelled(True, False),
    "with floats for labels": _labelled(0.0, float("nan")),
    "with deep metadata": lambda: _labelled(0, 1)().replace_schema_metadata({"label_names": "[" * 100_000}),
    "with metadata that are no text": lambda: _labelled(0, 1)().replace_schema_metadata({"huggingface": b"\xff\xfe"}),
    "with odd class names": _labelled(0, 1, metadata={"label_names": [ESCAPES, "[bold red]b[/]"]}),
    "without rows": lambda: pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}),
    "without the columns": lambda: pa.table({ESCAPES: [b"x"], "other": [0]}),
}


def _deep(place: Path) -> None:
    folder = place / "data" / "a"
    for _ in range(300):
        folder /= "a" * 8
    folder.mkdir(parents=True)
    (folder / "9.png").write_bytes(encoded(GREY))


def _linked(name: str, target: str | Path) -> Callable[[Path], Any]:
    return lambda place: (place / "data" / name).symlink_to(target)


def _named(*names: str) -> Callable[[Path], Any]:
    def change(place: Path) -> None:
        for name in names:
            (place / "data" / name).mkdir(parents=True)
            (place / "data" / name / "1.png").write_bytes(encoded(GREY))

    return change


def _numbered(place: Path) -> None:
    for name in "ab":
        (place / "data" / name).rename(place / "data" / str(ord(name) - 97))
    _named("4294967295")(place)


_FOLDERS: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "a name that moves the cursor": (_named(ESCAPES), True),
    "a name of markup": (_named("[bold red]c[/]", "<script>"), True),
    "a name that is no text": (_named(os.fsdecode(b"caf\xe9")), True),
    "the name of an option": (_named("--help", "-rf"), True),
    "a name as long as names may be": (_named("c" * 255), True),
    "a number beyond all memory": (_numbered, False),
    "folders without end": (_deep, True),
    "a link to itself": (_linked("c", "c"), True),
    "a link to the folder above": (_linked("c", ".."), False),
    "a link to the folder above in a class": (_linked("a/c", "../.."), True),
    "a link to the root": (_linked("c", "/"), False),
    "a link to the root in a class": (_linked("a/c", "/"), True),
    "a link to devices in a class": (_linked("a/c", "/dev"), True),
    "a link from one class to another": (_linked("a/c", "../b"), True),
    "two names for one folder": (_linked("c", "a"), False),
    "parts beside them": (_named("train/a", "val/a"), False),
    "a pipe among them": (lambda place: os.mkfifo(place / "data" / "c"), True),
}
