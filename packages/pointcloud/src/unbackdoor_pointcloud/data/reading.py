"""Clouds out of the files in which they lie: meshes, text, HDF5, arrays. Nothing in a file is ever executed."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbackdoor.arrays import LABEL_KEYS, as_labels, pick_arrays, read_arrays
from unbackdoor.errors import BadData, FileRefused

__all__ = ["CLOUDS", "MESHES", "POINT_KEYS", "read_array_file", "read_cloud", "read_hdf5", "read_mesh", "read_npz"]

MESHES = (".off", ".ply", ".obj", ".stl")
CLOUDS = (".txt", ".xyz", ".pts", ".csv", ".npy")
POINT_KEYS = ("points", "clouds", "data", "inputs", "x", "pos")
_OFF_HEADER = re.compile(rb"\A\s*OFF[ \t]*(?=[0-9])")


def read_mesh(path: Path, points: int, generator: torch.Generator) -> Tensor:
    """``points`` points of a mesh's surface, even by area, as trimesh samples them.

    The header of many files of ModelNet40, ``OFF490 518 0`` on one line, is mended.

    Returns:
        float32 of shape ``(points, 3)``.

    Raises:
        BadData: It is no mesh, or has no area.
    """
    trimesh = importlib.import_module("trimesh")
    content = path.read_bytes()
    if path.suffix.lower() == ".off":
        content = _OFF_HEADER.sub(b"OFF\n", content, count=1)
    try:
        mesh = trimesh.load(io.BytesIO(content), file_type=path.suffix[1:].lower(), force="mesh", process=False)
        area = float(mesh.area)
    except Exception as error:  # trimesh's parsers fail in ways of their own
        raise BadData(f"{path} cannot be read as a mesh: {error}.") from error
    if not area > 0:
        raise BadData(f"{path} is a mesh without area; remove it.")
    seed = int(torch.randint(2**31, (), generator=generator))
    found, _ = trimesh.sample.sample_surface(mesh, points, seed=seed)
    return torch.from_numpy(np.asarray(found, dtype=np.float32))


def read_cloud(path: Path) -> Tensor:
    """A cloud of a text file, with spaces or commas, or of an ``.npy`` file; columns beyond three are left out.

    Returns:
        float32 of shape ``(n, 3)``.

    Raises:
        BadData: It holds no such numbers.
    """
    try:
        if path.suffix == ".npy":
            table = np.load(path, allow_pickle=False)
        else:
            text = path.read_text(encoding="utf-8").replace(",", " ")
            table = np.loadtxt(io.StringIO(text), dtype=np.float32, ndmin=2)
    except ValueError as error:
        raise BadData(f"{path} cannot be read as a cloud: {error}.") from error
    if table.ndim != 2 or table.shape[1] < 3:
        raise BadData(f"{path} holds an array of shape {table.shape}; expected a row of x, y, z for each point.")
    return torch.from_numpy(np.ascontiguousarray(table[:, :3], dtype=np.float32))


def read_hdf5(paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Clouds and labels of HDF5 files with ``data`` ``(n, points, 3)`` and ``label``, one after the other.

    Raises:
        BadData: A file is no such thing.
        FileRefused: There is no file.
    """
    if not paths:
        raise FileRefused("no HDF5 file is there; give the folder that holds them.")
    h5py = importlib.import_module("h5py")
    clouds, labels = [], []
    for path in paths:
        try:
            with h5py.File(path, "r") as file:
                arrays = {name: torch.from_numpy(np.asarray(file[name])) for name in ("data", "label") if name in file}
        except OSError as error:
            raise BadData(f"{path} cannot be read as HDF5: {error}.") from error
        data, label = pick_arrays(arrays, path, {"data": ("data",), "label": ("label",)})
        clouds.append(_as_clouds(data, path))
        labels.append(as_labels(label, len(data), path))
    return torch.cat(clouds), torch.cat(labels)


def read_npz(path: Path) -> dict[str, Any]:
    """All arrays of an ``.npz`` file by name, arrays of text as lists.

    Raises:
        BadData: It would have to be unpickled.
        FileRefused: It cannot be opened.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise FileRefused(f"no file at {path}.") from error
    except (ValueError, TypeError) as error:
        raise BadData(
            f"{path} cannot be read without unpickling ({error}); save plain arrays with np.savez."
        ) from error


def read_array_file(path: Path) -> tuple[Tensor, Tensor]:
    """Clouds and labels of an ``.npz``, ``.pt``, ``.pth`` or ``.safetensors`` file, or of HDF5.

    Raises:
        BadData: It holds no such arrays.
    """
    if path.suffix in (".h5", ".hdf5"):
        return read_hdf5([path])
    tensors: Mapping[str, Tensor] = read_arrays(path, "a folder", ".h5")
    points, labels = pick_arrays(tensors, path, {"points": POINT_KEYS, "labels": LABEL_KEYS})
    return _as_clouds(points, path), as_labels(labels, len(points), path)


def _as_clouds(points: Tensor, path: Path) -> Tensor:
    if points.ndim == 3 and points.shape[1] == 3 and points.shape[2] != 3:
        points = points.transpose(1, 2)
    if points.ndim != 3 or points.shape[2] < 3:
        raise BadData(f"points in {path} have shape {tuple(points.shape)}; expected (n, points, 3).")
    return points[..., :3].float().contiguous()
