"""Arrays of an HDF5 file: their declared sizes are looked at first, and nothing but that file is read.

HDF5 lets an array lie in other files, be far larger than its file, and go through filters that are loaded as plug-ins.
"""

from __future__ import annotations

import importlib
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unbackdoor.errors import BadData, TooLarge
from unbackdoor.files.reading import check_bytes, check_file, reading, shown

__all__ = ["read_hdf5_arrays"]

_DEFLATE, _SHUFFLE, _CHECKSUM, _LZF = 1, 2, 3, 32000
_FILTERS = {_DEFLATE: "gzip", _SHUFFLE: "shuffle", _CHECKSUM: "fletcher32", _LZF: "lzf"}


def read_hdf5_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays ``names`` of the file's root, those of them that it has.

    Raises:
        BadData: It is no HDF5 file, or an array is no plain array of numbers within it.
        TooLarge: An array declares more than the limits allow.
        FileRefused: There is no such file.
    """
    h5py = importlib.import_module("h5py")
    path = check_file(path)
    with reading(shown(path), "fetch it again, or save plain arrays"), h5py.File(path, "r") as file:
        return {name: _array(file, name, path) for name in names if file.get(name, getclass=True, getlink=True)}


def _array(file: Any, name: str, path: Path) -> np.ndarray[Any, Any]:
    h5py = importlib.import_module("h5py")
    what = f"{shown(path)} ({shown(name)})"
    if file.get(name, getclass=True, getlink=True) is not h5py.HardLink:
        raise BadData(f"{what} is a link to another place, which is not followed; copy the array into the file.")
    data = file[name]
    if not isinstance(data, h5py.Dataset):
        raise BadData(f"{what} is no array; save plain arrays.")
    if data.external or data.is_virtual:
        raise BadData(f"{what} keeps its numbers in other files, which are not opened; copy them into this one.")
    if data.dtype.kind not in "fiu" or data.shape is None:
        raise BadData(f"{what} holds {data.dtype}, no plain numbers; save whole or floating-point numbers.")
    check_bytes(what, math.prod(data.shape) * data.dtype.itemsize, min(data.id.get_storage_size(), path.stat().st_size))
    if data.chunks is not None:
        _check_chunks(data, what)
    return np.asarray(data[()])


def _check_chunks(data: Any, what: str) -> None:
    """Known filters alone, none of which unpacks a chunk to more than its size."""
    layout = data.id.get_create_plist()
    filters = [layout.get_filter(place)[0] for place in range(layout.get_nfilters())]
    strangers = [str(code) for code in filters if code not in _FILTERS]
    packed = [code for code in filters if code in (_DEFLATE, _LZF)]
    if strangers or len(packed) > 1:
        told = f"filter {strangers[0]}" if strangers else "several filters"
        raise BadData(f"{what} is packed with {told}; only {', '.join(_FILTERS.values())} are read. Save it with gzip.")
    size = math.prod(data.chunks) * data.dtype.itemsize
    check_bytes(f"a chunk of {what}", size)
    if packed != [_DEFLATE]:
        return
    for place in range(data.id.get_num_chunks()):
        chunk = data.id.get_chunk_info(place)
        if chunk.filter_mask == 0:
            _, content = data.id.read_direct_chunk(chunk.chunk_offset)
            if len(zlib.decompressobj().decompress(content, size + 1)) > size:
                raise TooLarge(f"a chunk of {what} unpacks to more than the {size:,} bytes that it declares.")
