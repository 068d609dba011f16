"""Tiny-ImageNet and ImageNet as they are distributed, or as Parquet."""

from __future__ import annotations

from pathlib import Path

import torch

from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import BadData, FileRefused
from unbackdoor.files.class_names import listed
from unbackdoor.files.reading import path_below, read_text
from unbackdoor.task import Batch
from unbackdoor_image.data.folder import folder, read_folder
from unbackdoor_image.data.parquet import parquet
from unbackdoor_image.data.splitting import splits
from unbackdoor_pixels.decoding import decode
from unbackdoor_pixels.tables import find_files

__all__ = ["imagenet", "tinyimagenet"]


def tinyimagenet(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    size: int | None = None,
) -> Splits:
    """Tiny-ImageNet, ``uint8``, 64 pixels: test is the official validation part, 5 % are clean, as in FIP.

    Args:
        seed: Of the clean set.
        path: The folder ``tiny-imagenet-200`` as distributed, or a Parquet file or folder.
        clean_share: Share of the defender; None means 5 %.
        clean_count: Their number instead.
        size: Side in pixels; None means 64.

    Raises:
        FileRefused: The data are not there.
        BadData: The list of validation labels names images or classes that are not there.
    """
    if path is None:
        raise FileRefused("no path; give the folder tiny-imagenet-200, or its images as Parquet.")
    root, share = Path(path), 0.05 if clean_share is None and clean_count is None else clean_share
    notes = root / "val" / "val_annotations.txt"
    if not notes.is_file():
        files = find_files(root, "tiny")[0] if root.is_dir() else [root]
        source = files[0] if len(files) == 1 else root
        return parquet(seed=seed, path=source, clean_share=share, clean_count=clean_count, size=size, flip=True)
    train = read_folder(root / "train", size)
    train = Batch(train.inputs, train.targets, train.names, train.classes)  # lists of boxes lie there too
    test = _validation(notes, train.classes or (), size)
    return splits(train, test, seed=seed, clean_share=share, clean_count=clean_count, flip=True)


def _validation(notes: Path, classes: tuple[str, ...], size: int | None) -> Batch:
    rows = [line.split("\t") for line in read_text(notes).splitlines() if line.strip()]
    if any(len(row) < 2 for row in rows):
        raise BadData(f"a line of {notes} has no tab between an image and its class; unpack the archive again.")
    index = {name: place for place, name in enumerate(classes)}
    strangers = sorted({row[1] for row in rows} - set(index))
    if strangers:
        raise BadData(f"{notes} names {listed(strangers)}, which have no folder in {notes.parent.parent / 'train'}.")
    files = [path_below(notes.parent / "images", row[0], notes) for row in rows]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise BadData(f"images of {notes} are missing: {listed(missing)}; unpack the archive again.")
    names = tuple(file.name for file in files)
    images = decode(files, names=names, size=size)
    return Batch(images.pixels, torch.tensor([index[row[1]] for row in rows]), names, classes, images.notices)


def imagenet(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    size: int = 224,
) -> Splits:
    """ImageNet, ``uint8``: ``train`` and ``val`` with one folder for each class, or Parquet; 3 % are clean, as in FIP.

    All images are decoded into one tensor: 150 kB each at 224 pixels, so 190 GB for all 1.28 million. Take a smaller
    ``size`` or a subset of the classes on a machine with less memory; on one with more, raise the limit ``memory``.

    Args:
        seed: Of the clean set.
        path: The folder that holds ``train`` and ``val``, or a Parquet file or folder.
        clean_share: Share of the defender; None means 3 %.
        clean_count: Their number instead.
        size: Side in pixels of the square cut out of the centre after the shorter side was resized to it.

    Raises:
        FileRefused: The data are not there.
    """
    if path is None:
        raise FileRefused("no path; give the folder that holds train and val, or the images as Parquet.")
    share = 0.03 if clean_share is None and clean_count is None else clean_share
    reader = folder if (Path(path) / "train").is_dir() else parquet
    return reader(seed=seed, path=path, clean_share=share, clean_count=clean_count, size=size, fit="crop", flip=True)
