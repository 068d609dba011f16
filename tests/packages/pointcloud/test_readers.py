"""Meshes, clouds and HDF5 as people have them, and what is refused of them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import trimesh

from unbackdoor.errors import BadData, BadOption, FileRefused, TooLarge
from unbackdoor_pointcloud import load_clean
from unbackdoor_pointcloud.data import LOADERS
from unbackdoor_pointcloud.data.hdf5 import read_hdf5_arrays
from unbackdoor_pointcloud.data.meshes import read_mesh
from unbackdoor_pointcloud.data.reading import read_cloud

POINTS = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def lay(place: Path, *names: str, points: np.ndarray = POINTS) -> Path:
    """A cloud for each of ``names``, files such as ``train/cup/1.npy``."""
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(place / name, points)
    return place


# ---------------------------------------------------------------------------------------- points without faces


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_ply_of_points_alone_is_a_cloud(tmp_path, encoding):
    (tmp_path / "a").mkdir()
    cloud = trimesh.PointCloud(POINTS).export(file_type="ply", encoding=encoding)
    (tmp_path / "a" / "1.ply").write_bytes(cloud if isinstance(cloud, bytes) else cloud.encode())
    found, sampled = read_mesh(tmp_path / "a" / "1.ply", 8, draws())
    assert not sampled
    assert torch.allclose(found, torch.from_numpy(POINTS), atol=1e-6)
    batch, _ = load_clean(tmp_path, points=8)
    assert batch.inputs.shape == (1, 8, 3)
    assert batch.notices == (
        "1 of 1 files, such as 1.ply, hold points without faces. Their points were taken as they are.",
    )
    with pytest.raises(BadData, match="has 30 points, fewer than the 31 asked for; lower points"):
        load_clean(tmp_path, points=31)


@pytest.mark.parametrize(("name", "text"), [
    ("a.off", "OFF\n4 0 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n"), ("a.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\n"),
])  # fmt: skip
def test_other_meshes_without_faces_are_clouds(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found, sampled = read_mesh(tmp_path / name, 2, draws())
    assert (len(found), sampled) == (4, False)


def test_mesh_of_lines_is_refused_by_what_it_lacks(tmp_path):
    (tmp_path / "a.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n")
    with pytest.raises(BadData, match=r"the faces of .*a\.off have no area that could be sampled; remove"):
        read_mesh(tmp_path / "a.off", 4, draws())


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_obj_with_materials_textures_and_continued_lines_is_read_without_them(tmp_path, end):
    (tmp_path / "secret.mtl").write_text("newmtl a\nmap_Kd secret.png\n")
    lines = ["mtllib secret.mtl", "o body", "v 0 0 0", "v 1 0 0", "v 0 1 0", "vt 0 0", "vn 0 0 1", "usemtl a", "g x",
             "f 1/1/1 2/1/1 \\", "3/1/1"]  # fmt: skip
    (tmp_path / "a.obj").write_bytes(end.join(lines).encode())
    found, sampled = read_mesh(tmp_path / "a.obj", 500, draws())
    assert sampled
    assert found[:, 2].abs().max() == 0
    assert float(found[:, 0].mean()) == pytest.approx(1 / 3, abs=0.05)


def test_trimesh_says_nothing_of_a_damaged_file(capsys, monkeypatch):
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler())
    logging.getLogger("trimesh").warning("unable to load image!")
    assert capsys.readouterr() == ("", "")


# -------------------------------------------------------------------------------------------------- clouds


@pytest.mark.parametrize(("name", "text"), [
    ("a.pts", "2\n0 0 0\n1 2 3\n"), ("a.XYZ", "0 0 0 9 9\n1 2 3 9 9\n"), ("a.csv", "0,0,0\n1, 2, 3\n"),
    ("a.txt", "# x y z\n\n0 0 0\n1 2 3\n"),
])  # fmt: skip
def test_clouds_of_text(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_cloud(tmp_path / name).tolist() == [[0, 0, 0], [1, 2, 3]]


def test_arrays_named_in_capitals_are_arrays(tmp_path):
    with (tmp_path / "a.NPY").open("wb") as file:
        np.save(file, POINTS.astype(np.float16))
    assert read_cloud(tmp_path / "a.NPY").shape == (30, 3)


@pytest.mark.parametrize("odd", [np.nan, np.inf, 1e39])
def test_points_that_are_no_numbers_are_refused(tmp_path, odd):
    points = POINTS.astype(float)
    points[3, 1] = odd
    np.save(tmp_path / "a.npy", points)
    with pytest.raises(BadData, match=r"point 3 in .*a\.npy is NaN or infinite; remove it"):
        read_cloud(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", points=np.stack([POINTS, points]), labels=[0, 1])
    with pytest.raises(BadData, match=r"cloud 1 in .*a\.npz is NaN or infinite"):
        load_clean(tmp_path / "a.npz", points=8)


@pytest.mark.parametrize("dtype", [complex, bool, "U3"])
def test_points_of_other_kinds_are_refused(tmp_path, dtype):
    np.save(tmp_path / "a.npy", POINTS.astype(dtype))
    with pytest.raises(BadData, match="expected a row of x, y, z"):
        read_cloud(tmp_path / "a.npy")


# --------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("ending", ["npz", "h5", "safetensors"])
@pytest.mark.parametrize(("labels", "error"), [
    (np.array([0, -1]), "go down to -1"), (np.array([0, 2**32 - 1]), "100,000 classes are allowed"),
    (np.array([0, 2**63], np.uint64), "100,000 classes are allowed"),
    (np.array([0.0, 1.0]), "expected 2 whole numbers"),
])  # fmt: skip
def test_labels_that_are_no_classes_are_refused_before_memory_is_taken(tmp_path, ending, labels, error):
    path, points = tmp_path / f"a.{ending}", np.stack([POINTS, POINTS])
    if ending == "npz":
        np.savez(path, points=points, labels=labels)
    elif ending == "h5":
        with h5py.File(path, "w") as file:
            file["data"], file["label"] = points, labels
    else:
        from safetensors.numpy import save_file

        save_file({"points": points, "labels": labels}, path)
    with pytest.raises(BadData, match=error):
        load_clean(path, points=8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int8])
def test_labels_of_any_whole_numbers_are_read(tmp_path, dtype):
    np.savez(tmp_path / "a.npz", points=np.stack([POINTS, POINTS]), labels=np.array([0, 3], dtype))
    batch, classes = load_clean(tmp_path / "a.npz", points=8)
    assert batch.targets.tolist() == [0, 3]
    assert batch.classes == classes == ("0", "1", "2", "3")


# -------------------------------------------------------------------------------------------- class folders


def test_parts_are_no_classes(tmp_path):
    lay(tmp_path, "train/cup/1.npy", "train/vase/1.npy", "val/cup/1.npy", "val/vase/1.npy")
    with pytest.raises(BadData, match=r"train, val, parts of a data set where classes are expected; give .*train"):
        load_clean(tmp_path, points=8)
    assert load_clean(tmp_path / "train", points=8)[1] == ("cup", "vase")


def test_numbers_as_names_need_an_order(tmp_path):
    lay(tmp_path, *(f"{number}/1.npy" for number in (0, 1, 2, 10)))
    with pytest.raises(BadData, match="order='text' or order='number'"):
        load_clean(tmp_path, points=8)
    assert load_clean(tmp_path, points=8, order="number")[0].targets.tolist() == [0, 1, 10, 2]
    assert load_clean(tmp_path, points=8, order="text")[0].targets.tolist() == [0, 1, 2, 3]
    assert LOADERS["files"](path=tmp_path, points=8, order="number", clean_count=1).classes[10] == "10"


def test_folders_of_tools_are_passed_over_links_followed_and_others_told(tmp_path):
    lay(tmp_path / "own", "cup/1.npy", "cup/.ipynb_checkpoints/1.npy", "__MACOSX/cup/1.npy", "vase/1.npy")
    lay(tmp_path, "elsewhere/2.npy")
    (tmp_path / "own" / "vase" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "own" / "cup" / "scene.gltf").write_text(json.dumps({"buffers": [{"uri": "../../x"}]}))
    batch, classes = load_clean(tmp_path / "own", points=8)
    assert classes == batch.classes == ("cup", "vase")
    assert batch.names == ("cup/1.npy", "vase/1.npy", "vase/more/2.npy")
    assert len(batch.notices) == 1
    assert "1 .gltf" in batch.notices[0]


# ------------------------------------------------------------------------------------------------------ HDF5


def test_arrays_of_another_file_are_never_read(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["data"] = POINTS
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = h5py.ExternalLink("secret.h5", "/data")
        file["label"] = h5py.SoftLink("/data")
    for name in ("data", "label"):
        with pytest.raises(BadData, match=rf"a\.h5 \({name}\) is a link to another place"):
            read_hdf5_arrays(tmp_path / "a.h5", (name,))


def test_packed_and_chunked_arrays_are_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, how in {"a": {"compression": "gzip", "shuffle": True}, "b": {"compression": "lzf"},
                          "c": {"fletcher32": True, "compression": 9}, "d": {"chunks": (7, 2)}}.items():  # fmt: skip
            file.create_dataset(name, data=POINTS, **how)
    found = read_hdf5_arrays(tmp_path / "a.h5", ("a", "b", "c", "d", "gone"))
    assert list(found) == ["a", "b", "c", "d"]
    assert all(np.array_equal(array, POINTS) for array in found.values())


def test_sparse_arrays_and_odd_filters_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("vast", (2**40, 3), "f4", chunks=(4, 3))
        file.create_dataset("sparse", (10**8, 3), "f4", chunks=(1000, 3))
        file.create_dataset("plug", (4, 3), "f4", chunks=(4, 3), compression=32015, allow_unknown_filter=True)
    for name, error in {"vast": "the limit 'memory'", "sparse": "the limit 'ratio'"}.items():
        with pytest.raises(TooLarge, match=error):
            read_hdf5_arrays(tmp_path / "a.h5", (name,))
    with pytest.raises(BadData, match="packed with filter 32015; only gzip, shuffle, fletcher32, lzf are read"):
        read_hdf5_arrays(tmp_path / "a.h5", ("plug",))


# -------------------------------------------------------------------------------------------------- ModelNet


def test_lists_name_nothing_outside_their_folder(tmp_path):
    lay(tmp_path, "cup/cup_1.npy")
    np.savetxt(tmp_path / "secret_1.txt", POINTS)
    for part in ("train", "test"):
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / f"modelnet_{part}.txt").write_text("../secret_1\n")
    (tmp_path / "own" / "modelnet_shape_names.txt").write_text("../secret\n")
    with pytest.raises(FileRefused, match=r"modelnet_train\.txt names .*outside"):
        LOADERS["modelnet40"](path=tmp_path / "own", points=8)


@pytest.mark.parametrize(("change", "error"), [
    ({"label": np.array([0, 9, 0, 1])}, "has the label 9, but 2 classes are named"),
    ({"split": np.zeros(3, int)}, "split of shape"),
    ({"scale": np.ones((9, 9)), "points_q": np.ones(3)}, "cannot be read"),
    ({"points": np.zeros((4, 8, 2))}, "expected"), ({"split": np.zeros(4, int)}, "holds no sample"),
])  # fmt: skip
def test_archives_whose_arrays_do_not_fit_are_refused(tmp_path, change, error):
    arrays = {"points": np.stack([POINTS] * 4), "label": np.array([0, 1, 0, 1]), "split": np.array([0, 0, 1, 1]),
              "classes": np.array(["a", "b"])}  # fmt: skip
    np.savez(tmp_path / "a.npz", **{**arrays, **change})
    with pytest.raises(BadData, match=error):
        LOADERS["modelnet40"](path=tmp_path / "a.npz", points=8, clean_count=1)


def test_points_beyond_memory_are_refused_before_they_are_sampled(tmp_path):
    lay(tmp_path, "cup/1.npy")
    with pytest.raises(TooLarge, match=r"1 clouds of 10,000,000,000 points declares"):
        load_clean(tmp_path, points=10**10)
    with pytest.raises(BadOption, match="points is 0"):
        load_clean(tmp_path, points=0)
