"""Damaged meshes, clouds and arrays: a cloud or an error of ours, and never another."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import trimesh

from unbackdoor.testing import check_reader
from unbackdoor_pointcloud.data.meshes import read_mesh
from unbackdoor_pointcloud.data.reading import read_array_file, read_cloud

POINTS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
CORNERS, FACES = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 1, 2], [1, 2, 3]]


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def meshes() -> dict[str, bytes]:
    body = trimesh.Trimesh(CORNERS, FACES, process=False)
    forms = {
        "a.off": body.export(file_type="off"),
        "a.obj": "mtllib x.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nusemtl a\nf 1 2 3\nf 2/1 3/2 4/3\n",
        "text.ply": body.export(file_type="ply", encoding="ascii"),
        "bytes.ply": body.export(file_type="ply", encoding="binary"),
        "points.ply": trimesh.PointCloud(POINTS).export(file_type="ply"),
        "text.stl": body.export(file_type="stl_ascii"),
        "bytes.stl": body.export(file_type="stl"),
    }
    return {name: form if isinstance(form, bytes) else form.encode() for name, form in forms.items()}


def clouds() -> dict[str, bytes]:
    text = written(lambda file: np.savetxt(file, POINTS, fmt="%.3f"))
    return {"a.xyz": text, "a.csv": text.replace(b" ", b","), "a.pts": b"12\n" + text,
            "a.npy": written(lambda file: np.save(file, POINTS))}  # fmt: skip


def arrays() -> dict[str, bytes]:
    held = {"points": np.stack([POINTS] * 3), "labels": np.arange(3)}
    return {
        "plain.npz": written(lambda file: np.savez(file, **held)),
        "packed.npz": written(lambda file: np.savez_compressed(file, **held)),
        "a.h5": written(_hdf5),
    }


def _hdf5(target: io.BytesIO) -> None:
    with h5py.File(target, "w") as file:
        file.create_dataset("data", data=np.stack([POINTS] * 3), compression="gzip", shuffle=True)
        file["label"] = np.arange(3)


def sampled(path: Path) -> object:
    return read_mesh(path, 8, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("read", "made"), [(sampled, meshes), (read_cloud, clouds), (read_array_file, arrays)])
def test_damaged_files(read, made, tmp_path):
    check_reader(read, made(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("read", "made"), [(sampled, meshes), (read_cloud, clouds), (read_array_file, arrays)])
def test_fifty_thousand_damaged_files(read, made, tmp_path):
    check_reader(read, made(), tmp_path, count=50_000, seed=1)
