"""ModelNet10 and ModelNet40 (Wu et al. 2015, arXiv 1406.5670) in the layouts in which they are passed on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unbackdoor.arrays import LABEL_KEYS, as_labels
from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.splitting import split_classes
from unbackdoor.errors import BadData, BadOption, FileRefused
from unbackdoor.files.class_folders import files_below, read_class_folders
from unbackdoor.files.class_names import given_classes, names_of
from unbackdoor.files.reading import path_below, read_npz, read_text, reading, shown
from unbackdoor.task import Batch
from unbackdoor_pointcloud.data.folders import ENDINGS, read_files
from unbackdoor_pointcloud.data.normalising import same_number, unit_sphere
from unbackdoor_pointcloud.data.reading import as_clouds, read_hdf5

__all__ = ["TEN", "modelnet10", "modelnet40"]

TEN = ("bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet")
"""The classes of ModelNet10, in label order."""

_Part = tuple[Tensor, Tensor]


def modelnet40(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    points: int = 1024,
) -> Splits:
    """ModelNet40 in any usual layout; the clean set is 400 clouds of the training part, test is the official one.

    Args:
        seed: Of the clean set, and of the points where a cloud has more or a mesh is sampled.
        path: One of: the folder of official meshes (``chair/train/*.off``); the resampled text files
            (``modelnet40_train.txt`` beside class folders); the HDF5 files (``ply_data_train*.h5``); an ``.npz`` file
            with ``points`` (or ``points_q`` and ``scale``), ``label``, ``split`` (0 train, 1 test) and ``classes``.
        clean_share: Share of the training part that the defender holds.
        clean_count: Their number instead; None for both means 400, as in the papers.
        points: Of each cloud.

    Raises:
        FileRefused: The data are not there.
        BadData: They cannot be read, or clouds have too few points.
    """
    return _splits(path, None, points, seed, clean_share, clean_count)


def modelnet10(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    points: int = 1024,
) -> Splits:
    """ModelNet10, or its ten classes out of ModelNet40 (the official parts agree); the rest as for ``modelnet40``.

    Args:
        seed: See `modelnet40`.
        path: See `modelnet40`.
        clean_share: See `modelnet40`.
        clean_count: See `modelnet40`.
        points: See `modelnet40`.
    """
    return _splits(path, TEN, points, seed, clean_share, clean_count)


def _splits(
    path: str | Path | None,
    wanted: Sequence[str] | None,
    points: int,
    seed: int,
    clean_share: float | None,
    clean_count: int | None,
) -> Splits:
    if path is None:
        raise FileRefused("no path; give the folder or file that holds ModelNet.")
    if points < 1:
        raise BadOption(f"points is {points}; a cloud has at least 1.")
    generator = torch.Generator().manual_seed(seed)
    train, test, classes = _read(Path(path), points, generator, wanted)
    if clean_share is None and clean_count is None:
        clean_count = 400
    return split_classes(
        _finished(train, points, generator),
        _finished(test, points, generator),
        classes,
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        hints={"rotate": "none"},
    )


def _finished(part: _Part, points: int, generator: torch.Generator) -> Batch:
    return Batch(unit_sphere(same_number(part[0], points, generator)), part[1])


def _read(
    path: Path, points: int, generator: torch.Generator, wanted: Sequence[str] | None
) -> tuple[_Part, _Part, tuple[str, ...]]:
    if path.suffix == ".npz":
        return _from_npz(path, wanted)
    if not path.is_dir():
        raise FileRefused(f"no ModelNet at {shown(path)}; give the folder or the .npz file that holds it.")
    if sorted(path.glob("*train*.h5")):
        return _from_hdf5(path, wanted)
    lists = sorted(path.glob("modelnet*_train.txt"))
    if lists:
        return _from_text(path, lists[-1] if wanted is None else lists[0], points, generator, wanted)
    arrays = sorted(path.glob("modelnet40*.npz"))
    if arrays:
        return _from_npz(arrays[0], wanted)
    return _from_meshes(path, points, generator, wanted)


def _from_npz(path: Path, wanted: Sequence[str] | None) -> tuple[_Part, _Part, tuple[str, ...]]:
    arrays = read_npz(path)
    held = ", ".join(map(shown, arrays)) or "nothing"
    labels = next((arrays[key] for key in LABEL_KEYS if key in arrays), None)
    if labels is None or "split" not in arrays or "classes" not in arrays:
        raise BadData(f"{shown(path)} holds {held}; expected label, split, classes, and points.")
    with reading(shown(path), "save plain arrays"):
        if "points_q" in arrays and "scale" in arrays:
            points = arrays["points_q"].astype(np.float32) * np.float32(arrays["scale"])
        elif "points" in arrays:
            points = arrays["points"]
        else:
            raise BadData(f"{shown(path)} holds {held}; expected points, or points_q with scale.")
        clouds, split = as_clouds(torch.from_numpy(points), path), arrays["split"]
        targets = as_labels(torch.from_numpy(labels), len(clouds), path)
        if split.shape != (len(clouds),) or arrays["classes"].ndim != 1:
            raise BadData(f"{shown(path)} has {len(clouds)} clouds, but split of shape {split.shape}; give one each.")
        classes = tuple(str(name) for name in arrays["classes"])
        tested = torch.from_numpy(split.astype(np.int64)) == 1
    return _chosen((clouds[~tested], targets[~tested]), (clouds[tested], targets[tested]), classes, wanted)


def _from_hdf5(path: Path, wanted: Sequence[str] | None) -> tuple[_Part, _Part, tuple[str, ...]]:
    names = path / "shape_names.txt"
    if not names.is_file():
        raise FileRefused(f"no shape_names.txt in {shown(path)}; it gives the order of the classes.")
    train, test = read_hdf5(sorted(path.glob("*train*.h5"))), read_hdf5(sorted(path.glob("*test*.h5")))
    return _chosen(train, test, tuple(read_text(names).split()), wanted)


def _from_text(
    path: Path, train_list: Path, points: int, generator: torch.Generator, wanted: Sequence[str] | None
) -> tuple[_Part, _Part, tuple[str, ...]]:
    stem = train_list.name.removesuffix("_train.txt")
    names = path / f"{stem}_shape_names.txt"
    if names.is_file():
        classes = tuple(read_text(names).split())
    else:
        classes = read_class_folders(path, ENDINGS, what="clouds").classes
    parts = []
    for part in ("train", "test"):
        listed = path / f"{stem}_{part}.txt"
        if not listed.is_file():
            raise FileRefused(f"no {listed.name} in {shown(path)}; it lists the clouds of that part.")
        files, labels = [], []
        for name in read_text(listed).split():
            kind = name.rpartition("_")[0]
            if wanted is not None and kind not in wanted:
                continue
            if kind not in classes:
                raise BadData(
                    f"{shown(listed)} names {shown(name)}, but {shown(kind)} is none of the classes "
                    f"{', '.join(map(shown, classes))}."
                )
            files.append(path_below(path, f"{kind}/{name}.txt", listed))
            labels.append(classes.index(kind))
        parts.append((read_files(files, points, generator)[0], torch.tensor(labels)))
    return _chosen(parts[0], parts[1], classes, wanted)


def _from_meshes(
    path: Path, points: int, generator: torch.Generator, wanted: Sequence[str] | None
) -> tuple[_Part, _Part, tuple[str, ...]]:
    classes = read_class_folders(path, ENDINGS, what="clouds").classes if wanted is None else tuple(wanted)
    parts = []
    for part in ("train", "test"):
        folders = [path / name / part for name in classes]
        lost = [folder for folder in folders if not folder.is_dir()]
        if lost:
            raise FileRefused(f"no folder {shown(lost[0])}; ModelNet's meshes lie in CLASS/train and CLASS/test.")
        found = [(file, label) for label, folder in enumerate(folders) for file in files_below(folder, ENDINGS)]
        clouds, _ = read_files([file for file, _ in found], points, generator)
        parts.append((clouds, torch.tensor([label for _, label in found])))
    return parts[0], parts[1], classes


def _chosen(
    train: _Part, test: _Part, classes: tuple[str, ...], wanted: Sequence[str] | None
) -> tuple[_Part, _Part, tuple[str, ...]]:
    """The parts with only the classes ``wanted``, numbered in their order."""
    for _, labels in (train, test):
        names_of(labels, given_classes(classes), "a part of ModelNet")
    if wanted is None or classes == tuple(wanted):
        return train, test, classes
    lost = [name for name in wanted if name not in classes]
    if lost:
        raise BadData(f"there is no class {', '.join(lost)}; the data have {', '.join(classes)}.")
    number = torch.full((len(classes),), -1)
    for label, name in enumerate(wanted):
        number[classes.index(name)] = label
    parts = []
    for clouds, labels in (train, test):
        renumbered = number[labels]
        parts.append((clouds[renumbered >= 0], renumbered[renumbered >= 0]))
        if not len(parts[-1][0]):
            raise BadData(f"a part of ModelNet has no cloud of the classes {', '.join(wanted)}.")
    return parts[0], parts[1], tuple(wanted)
