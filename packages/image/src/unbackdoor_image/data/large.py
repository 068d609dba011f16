"""Tiny-ImageNet and ImageNet as they are distributed, or as Parquet."""

from __future__ import annotations

from pathlib import Path

import torch

from unbackdoor.errors import BadData, FileRefused
from unbackdoor.kit import Splits
from unbackdoor_image.data.decoding import decode
from unbackdoor_image.data.folder import folder, read_folder
from unbackdoor_image.data.parquet import find_files, parquet
from unbackdoor_image.data.splitting import splits

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
    images, labels, classes = read_folder(root / "train", size)
    rows = [line.split("\t")[:2] for line in notes.read_text(encoding="utf-8").splitlines() if line.strip()]
    strangers = sorted({name for _, name in rows} - set(classes))
    if strangers:
        raise BadData(f"{notes} names {', '.join(strangers[:5])}, which have no folder in {root / 'train'}.")
    missing = [name for name, _ in rows if not (root / "val" / "images" / name).is_file()]
    if missing:
        raise BadData(f"{len(missing)} images of {notes} are missing, such as {missing[0]}; unpack the archive again.")
    test = decode([root / "val" / "images" / name for name, _ in rows], size=size)
    wanted = torch.tensor([classes.index(name) for _, name in rows])
    return splits(
        (images, labels), (test, wanted), classes, seed=seed, clean_share=share, clean_count=clean_count, flip=True
    )


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
    ``size`` or a subset of the classes on a machine with less memory.

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
