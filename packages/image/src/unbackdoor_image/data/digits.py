"""The 1,797 handwritten digits of scikit-learn: real data that needs no file and no network."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.splitting import clean_size, draw
from unbackdoor.errors import BadOption
from unbackdoor.files.reading import check_bytes
from unbackdoor.task import Batch

__all__ = ["digits"]


def digits(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    size: int = 8,
) -> Splits:
    """Grey digits of 8x8 pixels, float32 in [0, 1]: 25 % test, 10 % clean, the rest for training.

    Args:
        seed: Of the split, which keeps the proportions of the classes.
        path: Not used; the data come with scikit-learn.
        clean_share: Share of the defender's samples; None means 10 %.
        clean_count: Their number instead.
        size: Side in pixels; more than 8 interpolates.

    Raises:
        BadOption: ``size`` is below 8 or the clean part leaves nothing to train on.
    """
    if size < 8:
        raise BadOption(f"size is {size}; the digits have 8 pixels a side, give 8 or more.")
    check_bytes("the digits at that size", 1797 * 4 * size * size)
    bunch = importlib.import_module("sklearn.datasets").load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    if size != 8:
        images = torch.nn.functional.interpolate(images, (size, size), mode="bilinear")
    labels = torch.from_numpy(bunch.target).long()
    classes = tuple(str(digit) for digit in range(10))
    generator = torch.Generator().manual_seed(seed)
    free = torch.ones(len(labels), dtype=torch.bool)
    test = draw(labels, round(0.25 * len(labels)), generator)
    free[test] = False
    rest = free.nonzero().flatten()
    count = len(labels) if clean_count is None else len(rest)
    clean = rest[draw(labels[rest], clean_size(count, clean_share, clean_count, 0.1), generator)]
    free[clean] = False
    return Splits(
        train=Batch(images[free], labels[free], classes=classes),
        clean=Batch(images[clean], labels[clean], classes=classes),
        test=Batch(images[test], labels[test], classes=classes),
        classes=classes,
        hints={"flip": False},
    )
