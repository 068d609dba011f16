"""Hostile clouds: meshes that name other files, HDF5 that lies elsewhere, counts beyond all memory."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hostile.samples import ESCAPES, HostileData, odd_files

__all__ = ["hostile_clouds", "lay_clouds"]

_POINTS = {"points": 4}
_OFF = "OFF\n4 2 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 1 2 3\n"
_OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nusemtl a\nf 1/1 2/2 3/3\nf 2/1 3/2 4/3\n"
_PLY = (
    "ply\nformat {form} 1.0\ncomment TextureFile {picture}\nelement vertex {count}\nproperty float x\n"
    "property float y\nproperty float z\nelement face {faces}\nproperty list uchar int vertex_indices\nend_header\n"
)
_CORNERS = "0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 1 2 3\n"
_CLOUD = "\n".join("{} {} {}".format(*point) for point in np.eye(8, 3))


def lay_clouds(place: Path, name: str = "1.off", content: bytes | str = _OFF) -> Path:
    """Class folders ``a`` and ``b`` in ``data``, an honest mesh in each and ``name`` in ``a``."""
    for folder in "ab":
        (place / "data" / folder).mkdir(parents=True)
        (place / "data" / folder / "2.off").write_text(_OFF)
    (place / "data" / "a" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return place / "data"


def hostile_clouds(address: str) -> Iterator[HostileData]:
    """All cases; ``address`` is the host and port that some of them would connect to."""
    for name, file, text, harmless in _meshes(address):
        yield HostileData(f"a mesh {name}", "pointcloud", partial(_text, file, text), _POINTS, harmless)
    for ending in ("ply", "npy", "xyz"):
        for name, change in odd_files(lambda place, ending=ending: place / "data" / "a" / f"1.{ending}"):
            left = name in ("a pipe", "a folder", "a link to a device", "a link to itself", "a link to nothing")
            build = partial(_changed, f"1.{ending}", change)
            yield HostileData(f"a file .{ending} is {name}", "pointcloud", build, _POINTS, harmless=left)
    for name, content in _npy():
        yield HostileData(f"an array {name}", "pointcloud", partial(_text, "1.npy", lambda _, c=content: c), _POINTS)
    for name, text in _clouds():
        yield HostileData(f"a cloud {name}", "pointcloud", partial(_text, "1.xyz", lambda _, t=text: t), _POINTS)
    for name, write in _HDF5.items():
        yield HostileData(f"HDF5 {name}", "pointcloud", partial(_hdf5, write), _POINTS)
    for name, content in _archives():
        yield HostileData(f"an archive {name}", "pointcloud", partial(_archive, content), _POINTS)
    yield HostileData("more points than memory holds", "pointcloud", lay_clouds, {"points": 10**9})
    yield HostileData(
        "escapes in names", "pointcloud", partial(lay_clouds, name=f"{ESCAPES}.xyz", content="x"), _POINTS
    )


def _meshes(address: str) -> Iterator[tuple[str, str, Callable[[Path], str | bytes], bool]]:
    """What it is, its file's name, its content, and whether it may be read without what it refers to."""
    picture = partial(_PLY.format, form="ascii", faces=2)
    yield "names a picture elsewhere", "1.ply", lambda p: picture(picture=p / "outside/x.png", count=4) + _CORNERS, True
    yield (
        "names a picture of an address",
        "1.ply",
        lambda p: picture(picture=f"http://{address}/x", count=4) + _CORNERS,
        True,
    )
    yield "names materials elsewhere", "1.obj", lambda p: f"mtllib {p / 'outside/secret.txt'}\n{_OBJ}", True
    yield "names materials above", "1.obj", lambda p: f"mtllib ../../outside/secret.txt\n{_OBJ}", True
    yield "names materials of an address", "1.obj", lambda p: f"mtllib http://{address}/x.mtl\n{_OBJ}", True
    for ending in ("obj", "ply", "off", "stl"):
        for what, uri in {"a file": "../../outside/secret.txt", "an address": f"http://{address}/x.bin"}.items():
            scene = {"asset": {"version": "2.0"}, "buffers": [{"uri": uri, "byteLength": 9}], "meshes": []}
            yield f"is GLTF with {what}, named .{ending}", f"1.{ending}", lambda p, s=scene: json.dumps(s), False
        yield f"is an archive, named .{ending}", f"1.{ending}", lambda p: _zipped("x.obj", _OBJ.encode()), False
    for count in (2**40, 2**63, 10**30, -1):
        head = partial(_PLY.format, picture="x", count=count, faces=2)
        yield f"declares {count} corners", "1.ply", lambda p, h=head: h(form="ascii") + _CORNERS, False
        yield f"declares {count} corners in bytes", "1.ply", lambda p, h=head: h(form="binary_little_endian"), False
        yield f"declares {count} corners as OFF", "1.off", lambda p, c=count: f"OFF\n{c} {c} 0\n0 0 0\n", False
    yield "declares 2**32 faces", "1.stl", lambda p: b"\0" * 80 + struct.pack("<I", 2**32 - 1) + b"\0" * 50, False
    faces = (b"\xff\xff\xff\x7f", b"\0\0\0\x80")
    for size in faces:
        head = _PLY.format(form="binary_little_endian", picture="x", count=4, faces=1).replace("uchar int", "int int")
        yield f"declares a face of {size.hex()}", "1.ply", lambda p, h=head, s=size: h.encode() + b"\0" * 48 + s, False
    yield "names corners that are not there", "1.off", lambda p: _OFF.replace("3 0 1 2", "3 0 1 99999999"), False
    yield "has corners that are no numbers", "1.off", lambda p: _OFF.replace("1 0 0", "nan inf 0"), False
    yield "has a header without end", "1.ply", lambda p: "ply\nformat ascii 1.0\n" + "comment x\n" * 9999, False
    yield "has no area", "1.off", lambda p: _OFF.replace("0 1 0", "0 0 0").replace("0 0 1", "0 0 0"), False


def _npy() -> Iterator[tuple[str, bytes]]:
    for what, header in {
        "of 2**50 numbers": "{'descr': '<f4', 'fortran_order': False, 'shape': (1125899906842624, 3)}",
        "of a negative size": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3)}",
        "of objects": "{'descr': '|O', 'fortran_order': False, 'shape': (1, 3)}",
        "whose header is code": "{'descr': __import__('os').system('touch RAN'), 'shape': (1, 3), 'fortran_order': 0}",
        "whose header is deep": "{'descr': " + "(" * 5000,
    }.items():
        text = (header + "\n").encode()
        yield what, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"\0" * 12
    yield "that is a pickle", pickle.dumps(np.eye(3))
    file = io.BytesIO()
    np.save(file, np.eye(8, 3).astype(complex))
    yield "that is complex", file.getvalue()


def _clouds() -> Iterator[tuple[str, str]]:
    yield "of NaN", _CLOUD.replace("1.0", "nan")
    yield "of numbers beyond all floats", _CLOUD.replace("1.0", "1e999")
    yield "on one line", "1 " * 300_000
    yield "of words", "x y z\na b c\n"
    yield "of ragged rows", _CLOUD + "\n1 2\n"
    yield "that is blank", "\n" * 9999
    yield "of comments", "# 1 2 3\n" * 99


def _one(file: h5py.File, name: str = "label") -> None:
    file[name] = np.arange(2)


def _external_link(file: h5py.File, place: Path) -> None:
    file["data"] = h5py.ExternalLink(str(place / "outside" / "secret.h5"), "/data")
    _one(file)


def _soft_link(file: h5py.File, place: Path) -> None:
    file["other"] = h5py.ExternalLink(str(place / "outside" / "secret.h5"), "/")
    file["data"] = h5py.SoftLink("/other/data")
    _one(file)


def _storage(file: h5py.File, place: Path) -> None:
    outside = str(place / "outside" / "secret.txt")
    file.create_dataset("data", (2, 8, 3), "f4", external=[(outside, 0, h5py.h5f.UNLIMITED)])
    _one(file)


def _virtual(file: h5py.File, place: Path) -> None:
    layout = h5py.VirtualLayout((2, 8, 3), "f4")
    layout[:] = h5py.VirtualSource(str(place / "outside" / "secret.h5"), "data", (2, 8, 3))
    file.create_virtual_dataset("data", layout)
    _one(file)


def _sparse(file: h5py.File, place: Path, count: int = 2**40) -> None:
    file.create_dataset("data", (count, 8, 3), "f4", chunks=(1, 8, 3))
    _one(file)


def _long_labels(file: h5py.File, place: Path) -> None:
    file["data"] = np.zeros((2, 8, 3), "f4")
    file.create_dataset("label", (2**40,), "i8", chunks=(1024,))


def _chunk_bomb(file: h5py.File, place: Path) -> None:
    data = file.create_dataset("data", (2, 8, 3), "f4", chunks=(2, 8, 3), compression="gzip")
    data.id.write_direct_chunk((0, 0, 0), zlib.compress(b"\0" * 2**22, 9))
    _one(file)


def _plug_in(file: h5py.File, place: Path) -> None:
    data = file.create_dataset("data", (2, 8, 3), "f4", chunks=(2, 8, 3), compression=32015, allow_unknown_filter=True)
    data.id.write_direct_chunk((0, 0, 0), b"\0" * 99)
    _one(file)


def _values(data: Any, labels: Any) -> Callable[[h5py.File, Path], None]:
    def write(file: h5py.File, place: Path) -> None:
        file["data"], file["label"] = data, labels

    return write


_FLAT = np.ones((2, 8, 3), "f4")
_HDF5: dict[str, Callable[[h5py.File, Path], None]] = {
    "with a link to another file": _external_link,
    "with a link to a link to another file": _soft_link,
    "whose numbers lie in another file": _storage,
    "that is a view of another file": _virtual,
    "that declares 2**40 clouds": _sparse,
    "that declares a thousand times its size": partial(_sparse, count=10**7),
    "that declares 2**40 labels": _long_labels,
    "with a chunk that unpacks to far more": _chunk_bomb,
    "packed by a plug-in": _plug_in,
    "of text": _values(np.array([b"x"]), np.arange(1)),
    "of objects": _values(np.array(["x", "y"], dtype=h5py.string_dtype()), np.arange(2)),
    "of complex numbers": _values(_FLAT.astype(complex), np.arange(2)),
    "of truths": _values(_FLAT.astype(bool), np.arange(2)),
    "of NaN": _values(_FLAT * np.nan, np.arange(2)),
    "with the label -1": _values(_FLAT, np.array([0, -1])),
    "with the label 2**63": _values(_FLAT, np.array([0, 2**63], np.uint64)),
    "with the label 2**32 - 1": _values(_FLAT, np.array([0, 2**32 - 1])),
    "with labels of NaN": _values(_FLAT, np.array([0, np.nan])),
    "whose array is a group": lambda file, place: (file.create_group("data"), _one(file))[0],
    "of nothing": lambda file, place: (_one(file), file.create_dataset("data", data=h5py.Empty("f4")))[0],
}


def _archives() -> Iterator[tuple[str, bytes]]:
    points = io.BytesIO()
    np.save(points, np.zeros((2, 4, 3), np.float32))
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 80)
    vast = header + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 4, 3)}".ljust(79) + b"\n"
    yield "whose array declares 2**40 clouds", _zipped("points.npy", vast)
    yield "that unpacks to a thousand times its size", _zipped("points.npy", points.getvalue() + b"\0" * 70 * 10**6)
    yield "with a path out of it", _zipped("../../outside/points.npy", points.getvalue())
    yield "of a pickle", _zipped("points.npy", pickle.dumps(np.eye(3)))
    yield "in an archive", _zipped("points.npy", _zipped("points.npy", points.getvalue()))


def _zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def _text(name: str, content: Callable[[Path], str | bytes], place: Path) -> Path:
    return lay_clouds(place, name, content(place))


def _changed(name: str, change: Callable[[Path], Any], place: Path) -> Path:
    folder = lay_clouds(place, name)
    change(place)
    return folder


def _archive(content: bytes, place: Path) -> Path:
    (place / "data").mkdir()
    path = place / "data" / "clouds.npz"
    path.write_bytes(content)
    return path


def _hdf5(write: Callable[[h5py.File, Path], None], place: Path) -> Path:
    with h5py.File(place / "outside" / "secret.h5", "w") as file:
        file["data"] = _FLAT
    (place / "data").mkdir()
    path = place / "data" / "clouds.h5"
    with h5py.File(path, "w") as file:
        write(file, place)
    return path
