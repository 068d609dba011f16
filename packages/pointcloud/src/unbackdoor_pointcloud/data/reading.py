"""Clouds out of the files in which they lie: text, arrays, HDF5. Nothing in a file is ever executed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbackdoor.arrays import LABEL_KEYS, as_labels, pick_arrays, read_arrays
from unbackdoor.errors import BadData, FileRefused
from unbackdoor.files.reading import read_npy, read_text, reading, shown
from unbackdoor_pointcloud.data.hdf5 import read_hdf5_arrays

__all__ = ["CLOUDS", "HDF5", "POINT_KEYS", "as_clouds", "read_array_file", "read_cloud", "read_hdf5"]

CLOUDS = (".txt", ".xyz", ".pts", ".csv", ".npy")
HDF5 = (".h5", ".hdf5")
POINT_KEYS = ("points", "clouds", "data", "inputs", "x", "pos")


def read_cloud(path: Path) -> Tensor:
    """A cloud of a text file, with spaces or commas, or of an ``.npy`` file; columns beyond three are left out.

    The number of points that ``.pts`` files have in their first line is passed over.

    Returns:
        float32 of shape ``(n, 3)``.

    Raises:
        BadData: It holds no such numbers.
        FileRefused: There is no such file.
    """
    name = shown(path)
    if path.suffix.lower() == ".npy":
        table = read_npy(path)
    else:
        text = read_text(path).replace(",", " ")
        first, _, rest = text.lstrip().partition("\n")
        text = rest if first.strip().isdecimal() else text
        if not text.strip():
            raise BadData(f"{name} holds no points; remove it.")
        with reading(name, "give a row of x, y, z for each point, without a line of names"):
            table = np.loadtxt(io.StringIO(text), dtype=np.float64, ndmin=2)
    if table.ndim != 2 or table.shape[1] < 3 or table.dtype.kind not in "fiu":
        raise BadData(f"{name} holds {table.dtype} of shape {table.shape}; expected a row of x, y, z for each point.")
    return _finite(torch.from_numpy(_as_float(table[:, :3])), path)


def read_hdf5(paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Clouds and labels of HDF5 files with ``data`` ``(n, points, 3)`` and ``label``, one after the other.

    Raises:
        BadData: A file is no such thing.
        TooLarge: It declares more than the limits allow.
        FileRefused: There is no file.
    """
    if not paths:
        raise FileRefused("no HDF5 file is there; give the folder that holds them.")
    clouds, labels = [], []
    for path in paths:
        with reading(shown(path), "save plain arrays"):
            found = read_hdf5_arrays(path, ("data", "label"))
            arrays = {name: torch.from_numpy(array) for name, array in found.items()}
            data, label = pick_arrays(arrays, path, {"data": ("data",), "label": ("label",)})
            clouds.append(as_clouds(data, path))
            labels.append(as_labels(label, len(data), path))
    if len({cloud.shape[1] for cloud in clouds}) > 1:
        raise BadData(f"{shown(paths[0])} and the files beside it differ in the number of points; give one kind alone.")
    return torch.cat(clouds), torch.cat(labels)


def read_array_file(path: Path) -> tuple[Tensor, Tensor]:
    """Clouds and labels of an ``.npz``, ``.pt``, ``.pth`` or ``.safetensors`` file, or of HDF5.

    Raises:
        BadData: It holds no such arrays.
        TooLarge: It declares more than the limits allow.
        FileRefused: There is no such file.
    """
    if path.suffix.lower() in HDF5:
        return read_hdf5([path])
    tensors: Mapping[str, Tensor] = read_arrays(path, "a folder", ".h5")
    points, labels = pick_arrays(tensors, path, {"points": POINT_KEYS, "labels": LABEL_KEYS})
    with reading(shown(path), "save plain arrays"):
        return as_clouds(points, path), as_labels(labels, len(points), path)


def as_clouds(points: Tensor, path: Path) -> Tensor:
    """float32 of shape ``(n, points, 3)``, out of any numbers, with the axes in the second or the last dimension.

    Raises:
        BadData: They are no clouds, or not finite.
    """
    if points.ndim == 3 and points.shape[1] == 3 and points.shape[2] != 3:
        points = points.transpose(1, 2)
    if points.ndim != 3 or points.shape[2] < 3 or not points.numel():
        raise BadData(f"points in {shown(path)} have shape {tuple(points.shape)}; expected (n, points, 3).")
    if points.is_complex() or points.dtype is torch.bool:
        raise BadData(f"points in {shown(path)} are {points.dtype}; save real numbers.")
    return _finite(points[..., :3].float().contiguous(), path)


def _as_float(table: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(table, dtype=np.float32)


def _finite(points: Tensor, path: Path) -> Tensor:
    finite = torch.isfinite(points).flatten(1).all(1)
    if bool(finite.all()):
        return points
    place = int((~finite).nonzero()[0])
    which = f"point {place}" if points.ndim == 2 else f"cloud {place}"
    raise BadData(f"{which} in {shown(path)} is NaN or infinite; remove it.")
