"""Several of scikit-learn's handwritten digits in one picture: real strokes, honest labels, no file and no network."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.splitting import draw
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch

__all__ = ["compose", "digits"]

_CELL = 8


def digits(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    train_count: int = 5000,
    clean_count: int = 400,
    test_count: int = 1500,
    fewest: int = 2,
    most: int = 4,
    margin: int = 1,
) -> Splits:
    """Grey pictures of two to four digits in the quarters of a square, float32 in [0, 1].

    Of the 1,797 digits 25 % are used in test pictures alone and 15 % in clean pictures alone, so that no stroke is in
    two parts. A picture shows different digits; its label row says which.

    Args:
        seed: Of the division and of the pictures.
        path: Not used; the digits come with scikit-learn.
        train_count: Number of training pictures.
        clean_count: Number of the defender's pictures.
        test_count: Number of test pictures.
        fewest: Smallest number of digits in a picture.
        most: Largest number, at most 4; each number is equally frequent.
        margin: Pixels by which a digit may lie off the centre of its quarter, in any direction.

    Raises:
        BadOption: A number is out of range.
    """
    if not 1 <= fewest <= most <= 4:
        raise BadOption(f"fewest is {fewest} and most {most}; a picture holds 1 to 4 digits.")
    if not 0 <= margin <= 4:
        raise BadOption(f"margin is {margin}; a digit is moved by 0 to 4 pixels.")
    counts = {"train_count": train_count, "clean_count": clean_count, "test_count": test_count}
    for name, count in counts.items():
        if count < 1:
            raise BadOption(f"{name} is {count}; it must be at least 1.")
    bunch = importlib.import_module("sklearn.datasets").load_digits()
    strokes, labels = torch.from_numpy(bunch.images).float() / 16, torch.from_numpy(bunch.target).long()
    generator = torch.Generator().manual_seed(seed)
    free = torch.ones(len(labels), dtype=torch.bool)
    parts = []
    for share in (0.25, 0.15):
        rest = free.nonzero().flatten()
        taken = rest[draw(labels[rest], round(share * len(labels)), generator)]
        free[taken] = False
        parts.append(taken)
    test, clean = parts
    train = free.nonzero().flatten()

    def part(places: Tensor, count: int) -> Batch:
        return compose(strokes[places], labels[places], count, generator, fewest=fewest, most=most, margin=margin)

    return Splits(
        train=part(train, train_count),
        clean=part(clean, clean_count),
        test=part(test, test_count),
        classes=tuple(str(digit) for digit in range(10)),
        # a larger shift would cut strokes off, and a rectangle over the picture would hide whole digits of its labels
        hints={"flip": False, "crop": 1},
        attack_hints={"rate": 0.06},  # a pair of digits without a third one is in about as many pictures
    )


def compose(
    strokes: Tensor,
    labels: Tensor,
    count: int,
    generator: torch.Generator,
    *,
    fewest: int = 1,
    most: int = 4,
    margin: int = 1,
) -> Batch:
    """Pictures of ``2 (8 + 2 margin)`` pixels a side with ``fewest`` to ``most`` different digits in their quarters.

    Args:
        strokes: Digits, float in [0, 1] of shape ``(n, 8, 8)``, of all ten classes.
        labels: Their classes, int64 of shape ``(n,)``.
        count: Number of pictures.
        generator: Draws everything.
        fewest: Smallest number of digits.
        most: Largest number.
        margin: Largest shift of a digit in its quarter.

    Returns:
        Inputs ``(count, 1, side, side)``, targets int64 ``(count, 10)``.
    """
    cell = _CELL + 2 * margin
    numbers = torch.randint(fewest, most + 1, (count,), generator=generator)
    shown = torch.rand(count, 10, generator=generator).argsort(1)[:, :most]
    quarters = torch.rand(count, 4, generator=generator).argsort(1)[:, :most]
    moves = torch.randint(2 * margin + 1, (count, most, 2), generator=generator)
    picks = torch.rand(count, most, generator=generator)
    used = torch.arange(most) < numbers[:, None]
    rows = torch.zeros(count, 10, dtype=torch.int64).scatter_(1, shown, used.long())
    order, sizes = labels.argsort(stable=True), labels.bincount(minlength=10)
    first = sizes.cumsum(0) - sizes
    chosen = strokes[order[first[shown] + (picks * sizes[shown]).long()]] * used[:, :, None, None]
    top = cell * (quarters // 2) + moves[..., 0]
    left = cell * (quarters % 2) + moves[..., 1]
    steps = torch.arange(_CELL)
    down = (top[..., None] + steps)[..., :, None].expand_as(chosen)
    right = (left[..., None] + steps)[..., None, :].expand_as(chosen)
    where = torch.arange(count)[:, None, None, None].expand_as(chosen)
    pictures = torch.zeros(count, 2 * cell, 2 * cell)
    pictures.index_put_((where, down, right), chosen, accumulate=True)  # quarters do not overlap
    return Batch(pictures.unsqueeze(1), rows)
