"""CIFAR-10 and GTSRB with their official training and test parts."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unbackdoor.errors import FileRefused
from unbackdoor.kit import Splits
from unbackdoor_image.data.decoding import decode
from unbackdoor_image.data.hub import hub_table
from unbackdoor_image.data.parquet import find_files, images_of, read_table
from unbackdoor_image.data.splitting import Labelled, splits

__all__ = ["cifar10", "gtsrb"]

_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_GTSRB = (
    *(f"limit {speed}" for speed in (20, 30, 50, 60, 70, 80)),
    *("end of limit 80", "limit 100", "limit 120", "no overtaking", "no overtaking, trucks", "priority at next"),
    *("priority road", "yield", "stop", "no vehicles", "no trucks", "no entry", "danger", "curve left", "curve right"),
    *("double curve", "bumpy road", "slippery road", "road narrows", "road works", "traffic signals", "pedestrians"),
    *("children", "bicycles", "snow", "wild animals", "end of all limits", "right only", "left only", "ahead only"),
    *("ahead or right", "ahead or left", "keep right", "keep left", "roundabout", "end of no overtaking"),
    "end of no overtaking, trucks",
)


def cifar10(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    size: int | None = None,
) -> Splits:
    """CIFAR-10, ``uint8``: the clean set is held out from the official training part, test is the official one.

    Args:
        seed: Of the clean set, equally many images of every class.
        path: A folder with the Hub's Parquet files, its training file, or a root of torchvision (the folder above
            ``cifar-10-batches-py``; torchvision checks the files' hashes). None loads ``uoft-cs/cifar10`` from the
            Hub, for which the package ``datasets`` must be installed.
        clean_share: Share of the defender; None means 1 % (500 images).
        clean_count: Their number instead.
        size: Side in pixels; None means 32.

    Raises:
        FileRefused: The data are not there.
    """
    if path is not None and (Path(path) / "cifar-10-batches-py").is_dir():
        train, test = (_torchvision_cifar10(Path(path), part) for part in (True, False))
        if size not in (None, 32):
            raise FileRefused("size works with Parquet files; torchvision's CIFAR-10 is kept at 32 pixels.")
    else:
        tables = _tables(path, "cifar10", "uoft-cs/cifar10")
        train, test = (images_of(table, size=size)[:2] for table in tables)
    return splits(train, test, _CIFAR10, seed=seed, clean_share=clean_share, clean_count=clean_count, flip=True)


def gtsrb(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    size: int = 32,
) -> Splits:
    """German traffic signs, ``uint8``: the clean set is held out from the official training part.

    The training images are tracks of 30 near copies. Where the file has a column ``track``, whole tracks are held out
    and their remaining frames left out of the training, so that the defender's images were not seen.

    Args:
        seed: Of the clean set.
        path: A folder with Parquet files, its training file, or a root of torchvision (the folder above ``gtsrb``).
        clean_share: Share of the defender; None means 3 %, as in FIP, since its classes are small.
        clean_count: Their number instead.
        size: Side in pixels; the whole frame is stretched.

    Raises:
        FileRefused: The data are not there.
    """
    if path is None:
        raise FileRefused(
            "no path for GTSRB; give a folder with gtsrb_train.parquet and gtsrb_test.parquet, or a root of "
            "torchvision (torchvision.datasets.GTSRB(root, download=True) fills one)."
        )
    groups: torch.Tensor | None = None
    if (Path(path) / "gtsrb").is_dir():
        train, test = (_torchvision_gtsrb(Path(path), part, size) for part in ("train", "test"))
    else:
        tables = _tables(path, "gtsrb", "")
        train, test = (images_of(table, size=size)[:2] for table in tables)
        if "track" in tables[0].column_names:
            groups = torch.tensor(tables[0].column("track").to_pylist())
    sizes: dict[str, Any] = {"clean_share": clean_share, "clean_count": clean_count, "default_share": 0.03}
    return splits(train, test, _GTSRB, seed=seed, groups=groups, flip=False, **sizes)


def _tables(path: str | Path | None, name: str, repository: str) -> tuple[Any, Any]:
    """Training and test part as tables, from files or, without a path, from the Hub."""
    if path is None:
        return hub_table(repository, "train"), hub_table(repository, "test")
    train_files, test_files = find_files(Path(path), name)
    if not test_files:
        raise FileRefused(f"no test file beside {train_files[0]}; put {name}_test.parquet into the same folder.")
    return read_table(train_files), read_table(test_files)


def _torchvision_cifar10(root: Path, train: bool) -> Labelled:
    try:
        data = importlib.import_module("torchvision.datasets").CIFAR10(str(root), train=train, download=False)
    except RuntimeError as error:
        raise FileRefused(f"torchvision refuses the CIFAR-10 files in {root}: {error}") from error
    images = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
    return images, torch.tensor(data.targets)


def _torchvision_gtsrb(root: Path, part: str, size: int) -> Labelled:
    try:
        data = importlib.import_module("torchvision.datasets").GTSRB(str(root), split=part, download=False)
    except RuntimeError as error:
        raise FileRefused(f"torchvision refuses the GTSRB files in {root}: {error}") from error
    paths, labels = zip(*data._samples, strict=True)
    return decode([Path(path) for path in paths], size=size), torch.tensor(labels)
