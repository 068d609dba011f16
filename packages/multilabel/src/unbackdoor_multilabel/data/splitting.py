"""The three parts of a set of images with label rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.splitting import clean_size, draw
from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch
from unbackdoor_multilabel.rows import rarest_class

__all__ = ["splits"]

_FEWEST = 3
"""Images, so that each part has one."""


def splits(
    train: Batch,
    test: Batch | None,
    classes: tuple[str, ...],
    *,
    seed: int,
    clean_share: float | None,
    clean_count: int | None,
    default_share: float = 0.1,
    test_share: float = 0.2,
    flip: bool,
    attack_hints: Mapping[str, Any] | None = None,
) -> Splits:
    """Clean samples out of ``train``, and test samples too where there is no ``test``.

    Each part is drawn in proportion from the groups of images that share their rarest class.

    Args:
        train: All training images, with label rows ``(n, classes)``.
        test: The official test part; None takes ``test_share`` of ``train``.
        classes: Names in label order.
        seed: Of the draw.
        clean_share: Share of the defender; None means ``default_share``.
        clean_count: Their number instead.
        default_share: See ``clean_share``.
        test_share: See ``test``.
        flip: Whether mirrored images show the same; becomes a hint.
        attack_hints: See `Splits`.

    Raises:
        BadData: Rows and class names differ in number, or there are too few images.
        BadOption: A share is out of range.
    """
    for part in (train, *(() if test is None else (test,))):
        if part.targets.ndim != 2 or part.targets.shape[1] != len(classes):
            raise BadData(f"label rows are {tuple(part.targets.shape)}, but there are {len(classes)} class names.")
    if len(train) < _FEWEST or (test is not None and not len(test)):
        raise BadData(f"there are {len(train)} images to train on; give at least {_FEWEST}, and one to test on.")
    generator = torch.Generator().manual_seed(seed)
    pool = train
    if test is None:
        if not 0 < test_share < 1:
            raise BadOption(f"test_share is {test_share}; it must lie in (0, 1).")
        count = min(len(pool) - 2, max(1, round(test_share * len(pool))))
        tested = draw(rarest_class(pool.targets), count, generator)
        test, pool = pool[tested], pool[_others(tested, len(pool))]
    held = draw(rarest_class(pool.targets), clean_size(len(pool), clean_share, clean_count, default_share), generator)
    return Splits(
        train=pool[_others(held, len(pool))],
        clean=pool[held],
        test=test,
        classes=classes,
        hints={"flip": flip},
        attack_hints=attack_hints or {},
    )


def _others(taken: Tensor, count: int) -> Tensor:
    rest = torch.ones(count, dtype=torch.bool)
    rest[taken] = False
    return rest.nonzero().flatten()
