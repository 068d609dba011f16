"""CIFAR-10 and GTSRB with their official training and test parts."""

from __future__ import annotations

import csv
import importlib
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import BadData, BadOption, FileRefused
from unbackdoor.files.class_folders import read_class_folders
from unbackdoor.files.reading import path_below, read_text, reading
from unbackdoor.task import Batch
from unbackdoor_image.data.hub import PACKAGE
from unbackdoor_image.data.parquet import Look, samples_of
from unbackdoor_image.data.splitting import splits
from unbackdoor_pixels.decoding import ENDINGS, decode
from unbackdoor_pixels.hub import hub_records
from unbackdoor_pixels.tables import Records, find_files, read_records

__all__ = ["cifar10", "gtsrb"]

_TRACK = re.compile(r"(?:^|/)(\d{1,18})_\d+\.[a-z]+$", re.IGNORECASE)
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
        if size not in (None, 32):
            raise BadOption(f"size is {size}, but torchvision's CIFAR-10 is kept at 32 pixels; leave size out.")
        train, test = (_torchvision_cifar10(Path(path), part) for part in (True, False))
    else:
        look = Look(size)
        train, test = (_named(part, look, _CIFAR10) for part in _parts(path, "cifar10", "uoft-cs/cifar10", look))
    return splits(train, test, seed=seed, clean_share=clean_share, clean_count=clean_count, flip=True)


def gtsrb(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    size: int = 32,
) -> Splits:
    """German traffic signs, ``uint8``: the clean set is held out from the official training part.

    The training images are tracks of 30 near copies, which the file has in its column ``track`` or in the names of its
    images (``00000_00012.png``: the track, then the frame). Whole tracks are held out and their remaining frames left
    out of the training, so that the defender's images were not seen; the samples carry their tracks as groups.

    Args:
        seed: Of the clean set.
        path: A folder with Parquet files, its training file, or a root of torchvision (the folder above ``gtsrb``).
        clean_share: Share of the defender; None means 3 %, as in FIP, since its classes are small.
        clean_count: Their number instead.
        size: Side in pixels; the whole frame is stretched.

    Raises:
        FileRefused: The data are not there.
        BadData: They cannot be read.
    """
    if path is None:
        raise FileRefused(
            "no path for GTSRB; give a folder with gtsrb_train.parquet and gtsrb_test.parquet, or a root of "
            "torchvision (torchvision.datasets.GTSRB(root, download=True) fills one)."
        )
    groups: Tensor | None = None
    if (Path(path) / "gtsrb").is_dir():
        root = Path(path) / "gtsrb"
        train, test = _gtsrb_folders(root / "GTSRB" / "Training", size), _gtsrb_list(root, size)
        groups = _tracks_by_name(train.names or ())
    else:
        look = Look(size)
        parts = _parts(path, "gtsrb", "", look, "track")
        train, test = (_named(part, look, _GTSRB) for part in parts)
        groups = _tracks(parts[0])
    return splits(
        train,
        test,
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        default_share=0.03,
        groups=groups,
        flip=False,
    )


def _parts(path: str | Path | None, name: str, repository: str, look: Look, *also: str) -> tuple[Records, Records]:
    """Training and test part, from files or, without a path, from the Hub."""

    def pick(names: object) -> list[str]:
        assert isinstance(names, list | tuple)
        return [*look.pick(names), *(column for column in also if column in names)]

    if path is None:
        return hub_records(repository, "train", pick, PACKAGE), hub_records(repository, "test", pick, PACKAGE)
    train_files, test_files = find_files(Path(path), name)
    if not test_files:
        raise FileRefused(f"no test file beside {train_files[0]}; put {name}_test.parquet into the same folder.")
    return read_records(train_files, pick), read_records(test_files, pick)


def _named(records: Records, look: Look, classes: tuple[str, ...]) -> Batch:
    """Samples under the official names, which are placed by name where the file names its numbers alike."""
    own = {name for names in records.class_names.values() for name in names}
    samples = samples_of(records, look, classes if own <= set(classes) else None)
    if int(samples.targets.max()) >= len(classes):
        raise BadData(
            f"{records.source} has the label {int(samples.targets.max())}, but the data set has {len(classes)} classes."
        )
    return Batch(samples.inputs, samples.targets, samples.names, classes, samples.notices)


def _tracks(records: Records) -> Tensor | None:
    tracks = records.columns.get("track")
    if tracks is None:
        return None
    if not all(type(track) is int and 0 <= track < 2**63 for track in tracks):
        raise BadData(f"column 'track' of {records.source} must hold a whole number from 0 for each image.")
    return torch.tensor(tracks, dtype=torch.int64)


def _tracks_by_name(names: Sequence[str]) -> Tensor | None:
    """Track of each image of one class, told by its name; None where a name tells none."""
    found = [_TRACK.search(name) for name in names]
    return torch.tensor([int(one[1]) for one in found if one]) if found and all(found) else None


def _torchvision_cifar10(root: Path, train: bool) -> Batch:
    with reading(f"the CIFAR-10 files in {root}", "unpack the archive again"):
        try:
            data = importlib.import_module("torchvision.datasets").CIFAR10(str(root), train=train, download=False)
        except RuntimeError as error:
            raise FileRefused(f"torchvision refuses the CIFAR-10 files in {root}: {error}") from error
        images = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
        names = tuple(f"{'training' if train else 'test'} image {place}" for place in range(len(images)))
        return Batch(images, torch.tensor(data.targets), names, _CIFAR10)


def _gtsrb_folders(root: Path, size: int) -> Batch:
    found = read_class_folders(root, ENDINGS, what="images", order="number")
    if len(found.classes) > len(_GTSRB):
        raise BadData(f"{root} has a folder {found.classes[-1]}, but GTSRB has the classes 0 to {len(_GTSRB) - 1}.")
    images = decode(found.files, names=found.names, size=size)
    return Batch(images.pixels, found.labels, found.names, _GTSRB, images.notices)


def _gtsrb_list(root: Path, size: int) -> Batch:
    listing, folder = root / "GT-final_test.csv", root / "GTSRB" / "Final_Test" / "Images"
    with reading(listing, "unpack the archive of the test labels again"):
        rows = list(csv.DictReader(io.StringIO(read_text(listing)), delimiter=";"))
        names = tuple(row["Filename"] for row in rows)
        labels = torch.tensor([int(row["ClassId"]) for row in rows], dtype=torch.int64)
    images = decode([path_below(folder, name, listing) for name in names], names=names, size=size)
    return Batch(images.pixels, labels, names, _GTSRB, images.notices)
