"""Loaders, on tiny files in the layouts of the real ones; primitive bodies against their geometry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from unbackdoor.errors import BadData, BadOption, FileRefused
from unbackdoor_pointcloud import load_clean
from unbackdoor_pointcloud.data import LOADERS, unit_sphere
from unbackdoor_pointcloud.data.meshes import read_mesh
from unbackdoor_pointcloud.data.modelnet import TEN
from unbackdoor_pointcloud.data.shapes import BODIES, sample_body

NUMBERS = np.random.default_rng(0)


def cloud(level: float = 0.0, points: int = 20) -> np.ndarray:
    """Points whose spread along the first axis tells the class, also after scaling."""
    found = NUMBERS.normal(size=(points, 3)).astype(np.float32)
    found[:, 0] *= 1 + level
    return found


# ------------------------------------------------------------------------------------------------ bodies


@pytest.mark.parametrize("name", sorted(BODIES))
def test_bodies_are_bounded_and_differ(name: str, generator: torch.Generator) -> None:
    found = sample_body(name, 3, 500, generator)
    assert found.shape == (3, 500, 3)
    assert bool(torch.isfinite(found).all())
    assert float(found.abs().max()) <= 2
    again = sample_body(name, 3, 500, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)


def test_sphere_is_even(generator: torch.Generator) -> None:
    (found,) = sample_body("sphere", 1, 20000, generator)
    assert_close(found.norm(dim=1), torch.ones(20000, dtype=torch.float64))
    assert float(found.mean(0).abs().max()) < 0.03
    assert float((found.T @ found / 20000 - torch.eye(3) / 3).abs().max()) < 0.01


def test_torus_is_even_by_area(generator: torch.Generator) -> None:
    """Its outer half has the share 1/2 + thin/pi of the area, by Pappus; the tube's radius is read off the height."""
    (found,) = sample_body("torus", 1, 40000, generator)
    ring, thin = found[:, :2].norm(dim=1), float(found[:, 2].abs().max())
    assert_close((ring - 1).square() + found[:, 2].square(), torch.full((40000,), thin**2).double(), rtol=1e-3, atol=0)
    assert float((ring > 1).double().mean()) == pytest.approx(0.5 + thin / np.pi, abs=0.01)


def test_box_is_even_by_area(generator: torch.Generator) -> None:
    (found,) = sample_body("box", 1, 40000, generator)
    half = found.abs().amax(0)
    on_face = (found.abs() == half).sum(0) / 40000
    area = torch.stack([half[1] * half[2], half[0] * half[2], half[0] * half[1]])
    assert_close(on_face.double(), area / area.sum(), rtol=0, atol=0.01)


@pytest.mark.parametrize(("name", "degree"), [("cone", 2), ("cylinder", 1)])
def test_round_bodies_are_even_by_area(name: str, degree: int, generator: torch.Generator) -> None:
    (found,) = sample_body(name, 1, 40000, generator)
    ring, height = found[:, :2].norm(dim=1), found[:, 2]
    radius, top = float(ring.max()), float(height.max())
    if name == "cone":
        base = float((height == 0).double().mean())
        assert base == pytest.approx(radius / (radius + float(np.hypot(radius, top))), abs=0.01)
        side = height[height > 0] / top
        assert float((side < 0.5).double().mean()) == pytest.approx(0.75, abs=0.01)  # area grows squared from the tip
    else:
        ends = height.abs() == top
        assert float(ends.double().mean()) == pytest.approx(radius / (radius + 2 * top), abs=0.01)
        assert float((ring[ends] < radius / 2).double().mean()) == pytest.approx(0.25, abs=0.02)


def test_pyramid_is_even_by_area(generator: torch.Generator) -> None:
    (found,) = sample_body("pyramid", 1, 40000, generator)
    half, top = float(found[:, :2].abs().max()), float(found[:, 2].max())
    on_base = found[:, 2] == 0
    slant = float(np.hypot(half, top))
    assert float(on_base.double().mean()) == pytest.approx(half / (half + slant), abs=0.01)
    sides = found[~on_base]
    assert_close(
        sides[:, :2].abs().amax(1) / half + sides[:, 2] / top, torch.ones(len(sides)).double(), rtol=0, atol=0.02
    )


def test_shapes_are_three_disjoint_parts_in_the_unit_sphere() -> None:
    data = LOADERS["shapes"](seed=1, points=32, count=120)
    parts = [data.train, data.clean, data.test]
    assert [len(part) for part in parts] == [72, 18, 30]
    everything = torch.cat([part.inputs for part in parts])
    assert len(everything.flatten(1).unique(dim=0)) == 120
    assert_close(everything.norm(dim=2).amax(1), torch.ones(120))
    assert_close(everything.mean(1), torch.zeros(120, 3), rtol=0, atol=1e-5)
    assert set(data.clean.targets.tolist()) == set(range(6))
    with pytest.raises(BadOption, match="count"):
        LOADERS["shapes"](count=12)


# ---------------------------------------------------------------------------------------------- ModelNet


def write_npz(root: Path, extra: int = 0) -> Path:
    classes = ("airplane", *TEN)
    clouds, labels, split = [], [], []
    for label in range(len(classes)):
        for number in range(6):
            clouds.append(cloud(label, 20 + extra))
            labels.append(label)
            split.append(int(number >= 4))
    path = root / "modelnet40_20.npz"
    np.savez(path, points=np.stack(clouds), label=np.array(labels, np.uint8), split=np.array(split), classes=classes)
    return path


def test_npz_gives_the_official_parts_and_renumbers_ten_classes(tmp_path: Path) -> None:
    path = write_npz(tmp_path)
    forty = LOADERS["modelnet40"](path=path, points=20, clean_count=11)
    ten = LOADERS["modelnet10"](path=path, points=20, clean_count=10)
    assert (len(forty.train), len(forty.clean), len(forty.test)) == (33, 11, 22)
    assert (len(ten.train), len(ten.clean), len(ten.test)) == (30, 10, 20)
    assert ten.classes == TEN
    assert forty.classes[0] == "airplane"
    assert torch.equal(ten.test.targets, forty.test.targets[forty.test.targets > 0] - 1)
    assert torch.equal(ten.test.inputs, forty.test.inputs[forty.test.targets > 0])
    folder = LOADERS["modelnet10"](path=tmp_path, points=20, clean_count=10)
    assert torch.equal(folder.train.inputs, ten.train.inputs)


def test_quantised_points_come_back_at_their_scale(tmp_path: Path) -> None:
    path = write_npz(tmp_path)
    with np.load(path) as file:
        arrays = dict(file)
    points = unit_sphere(torch.from_numpy(arrays.pop("points"))).numpy()
    scale = np.float32(1 / 127)
    np.savez(tmp_path / "q.npz", points_q=np.rint(points / scale).astype(np.int8), scale=scale, **arrays)
    found = LOADERS["modelnet40"](path=tmp_path / "q.npz", points=20, clean_count=11)
    exact = LOADERS["modelnet40"](path=path, points=20, clean_count=11)
    assert_close(found.test.inputs, exact.test.inputs, rtol=0, atol=0.02)


def test_fewer_points_are_drawn_and_more_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path)
    found = LOADERS["modelnet40"](path=path, points=12, clean_count=11)
    assert found.train.inputs.shape[1:] == (12, 3)
    assert len(found.train.inputs[0].unique(dim=0)) == 12
    with pytest.raises(BadData, match="fewer than the 21"):
        LOADERS["modelnet40"](path=path, points=21, clean_count=11)


def test_hdf5_layout(tmp_path: Path) -> None:
    (tmp_path / "shape_names.txt").write_text("\n".join(TEN))
    for part, count in (("train0", 20), ("train1", 10), ("test0", 10)):
        with h5py.File(tmp_path / f"ply_data_{part}.h5", "w") as file:
            file["data"] = np.stack([cloud(n % 10) for n in range(count)])
            file["label"] = (np.arange(count) % 10).astype(np.uint8)[:, None]
    found = LOADERS["modelnet40"](path=tmp_path, points=16, clean_count=10)
    assert (len(found.train), len(found.clean), len(found.test)) == (20, 10, 10)
    assert found.classes == TEN
    assert found.test.targets.tolist() == list(range(10))


def test_text_layout(tmp_path: Path) -> None:
    kinds = ("night_stand", "sofa")
    (tmp_path / "modelnet40_shape_names.txt").write_text("\n".join(kinds))
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for kind in kinds:
        (tmp_path / kind).mkdir()
        for number in range(5):
            name = f"{kind}_{number:04d}"
            lists["test" if number == 4 else "train"].append(name)
            rows = np.hstack([cloud(points=30), NUMBERS.normal(size=(30, 3))])
            np.savetxt(tmp_path / kind / f"{name}.txt", rows, delimiter=",", fmt="%.6f")
    for part, names in lists.items():
        (tmp_path / f"modelnet40_{part}.txt").write_text("\n".join(names) + "\n")
    found = LOADERS["modelnet40"](path=tmp_path, points=30, clean_count=2)
    assert found.classes == kinds
    assert (len(found.train), len(found.clean), len(found.test)) == (6, 2, 2)
    assert found.train.inputs.shape == (6, 30, 3)
    (tmp_path / "modelnet40_test.txt").write_text("piano_0001")
    with pytest.raises(BadData, match="piano"):
        LOADERS["modelnet40"](path=tmp_path, points=30, clean_count=2)


@pytest.fixture
def off() -> Callable[[bool], str]:
    """Two triangles, one much larger than the other, as OFF; its header on two lines, or on one."""

    def make(mended: bool = True) -> str:
        end = "\n" if mended else ""
        corners = ["0 0 0", "1 0 0", "0 1 0", "0 0 9", "0 9 9"]
        return f"OFF{end}5 2 0\n" + "\n".join([*corners, "3 0 1 2", "3 0 3 4"]) + "\n"

    return make


@pytest.mark.parametrize("mended", [True, False])
def test_meshes_are_sampled_by_area(tmp_path: Path, off: Callable[[bool], str], mended: bool) -> None:
    path = tmp_path / "a.off"
    path.write_text(off(mended))
    found, _ = read_mesh(path, 4000, torch.Generator().manual_seed(0))
    assert found.shape == (4000, 3)
    small = (found[:, 2] == 0).float().mean()
    assert float(small) == pytest.approx(0.5 / (0.5 + 40.5), abs=0.006)
    assert torch.equal(found, read_mesh(path, 4000, torch.Generator().manual_seed(0))[0])


def test_mesh_layout(tmp_path: Path, off: Callable[[bool], str]) -> None:
    for name in TEN:
        for part, count in (("train", 3), ("test", 1)):
            (tmp_path / name / part).mkdir(parents=True)
            for number in range(count):
                (tmp_path / name / part / f"{name}_{number}.off").write_text(off(number == 0))
    found = LOADERS["modelnet10"](path=tmp_path, points=24, clean_count=10)
    assert (len(found.train), len(found.clean), len(found.test)) == (20, 10, 10)
    assert_close(found.train.inputs.norm(dim=2).amax(1), torch.ones(20))
    broken = tmp_path / "sofa" / "train" / "sofa_0.off"
    broken.write_text("OFF\nnothing")
    with pytest.raises(BadData, match=r"sofa_0\.off"):
        LOADERS["modelnet10"](path=tmp_path, points=24, clean_count=10)


@pytest.mark.parametrize("name", ["modelnet10", "modelnet40", "scanobjectnn", "files"])
def test_loaders_say_what_is_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="path"):
        LOADERS[name]()
    with pytest.raises((FileRefused, BadData), match=str(tmp_path.name)):
        LOADERS[name](path=tmp_path / "none")


# ------------------------------------------------------------------------------------------ ScanObjectNN


def test_scanobjectnn_layout(tmp_path: Path) -> None:
    for folder in ("main_split", "main_split_nobg"):
        (tmp_path / folder).mkdir()
        for part, count in (("training", 45), ("test", 15)):
            with h5py.File(tmp_path / folder / f"{part}_objectdataset.h5", "w") as file:
                file["data"] = np.stack([cloud(n % 15, 30) for n in range(count)])
                file["label"] = np.arange(count) % 15
                file["mask"] = np.zeros((count, 30))
    found = LOADERS["scanobjectnn"](path=tmp_path, points=16, clean_count=15)
    assert (len(found.train), len(found.clean), len(found.test), len(found.classes)) == (30, 15, 15, 15)
    bare = LOADERS["scanobjectnn"](path=tmp_path, points=16, clean_count=15, background=False)
    assert not torch.equal(bare.test.inputs, found.test.inputs)
    direct = LOADERS["scanobjectnn"](path=tmp_path / "main_split", points=16, clean_count=15)
    assert torch.equal(direct.test.inputs, found.test.inputs)
    with pytest.raises(FileRefused, match="scale75"):
        LOADERS["scanobjectnn"](path=tmp_path, variant="t50_rs")
    with pytest.raises(BadOption, match="plain"):
        LOADERS["scanobjectnn"](path=tmp_path, variant="hard")


# -------------------------------------------------------------------------------------- the user's files


def test_folder_of_clouds_and_meshes(tmp_path: Path, off: Callable[[bool], str]) -> None:
    for name in ("cup", "vase"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", cloud(points=30))
        np.savetxt(tmp_path / name / "b.xyz", cloud(points=30))
        (tmp_path / name / "c.off").write_text(off(True))
    batch, classes = load_clean(tmp_path, points=16)
    assert classes == ("cup", "vase")
    assert batch.inputs.shape == (6, 16, 3)
    assert batch.targets.tolist() == [0, 0, 0, 1, 1, 1]
    shifted, _ = load_clean(tmp_path, points=16, classes=["bowl", "cup", "vase"])
    assert shifted.targets.tolist() == [1, 1, 1, 2, 2, 2]
    with pytest.raises(BadData, match="cup"):
        load_clean(tmp_path, points=16, classes=["bowl", "vase"])
    splits = LOADERS["files"](path=tmp_path, points=16, clean_count=2)
    assert (len(splits.train), len(splits.clean), len(splits.test)) == (3, 2, 1)


@pytest.mark.parametrize("ending", ["npz", "pt", "h5"])
def test_files_of_arrays(tmp_path: Path, ending: str) -> None:
    points, labels = np.stack([cloud() for _ in range(4)]), np.array([0, 2, 1, 2])
    path = tmp_path / f"clean.{ending}"
    if ending == "npz":
        np.savez(path, points=points, labels=labels)
    elif ending == "pt":
        torch.save({"points": torch.from_numpy(points), "labels": torch.from_numpy(labels)}, path)
    else:
        with h5py.File(path, "w") as file:
            file["data"], file["label"] = points, labels
    batch, classes = load_clean(path, points=20)
    assert_close(batch.inputs, unit_sphere(torch.from_numpy(points)))
    assert batch.targets.tolist() == [0, 2, 1, 2]
    assert classes == ("0", "1", "2")
    raw, named = load_clean(path, points=20, normalise=False, classes=["a", "b", "c"])
    assert_close(raw.inputs, torch.from_numpy(points))
    assert named == ("a", "b", "c")
    with pytest.raises(BadData, match=r"0\.\.1"):
        load_clean(path, points=20, classes=["a", "b"])


def test_arrays_that_need_unpickling_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", points=np.array([{}], dtype=object), label=np.zeros(1))
    with pytest.raises(BadData, match="unpickling"):
        LOADERS["modelnet40"](path=tmp_path / "bad.npz")
