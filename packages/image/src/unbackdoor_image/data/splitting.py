"""The three parts of a data set of images."""

from __future__ import annotations

from torch import Tensor

from unbackdoor.kit import Splits
from unbackdoor.splitting import split_classes
from unbackdoor.task import Batch

__all__ = ["Labelled", "splits"]

Labelled = tuple[Tensor, Tensor]
"""Images ``uint8`` or float of shape ``(n, channels, height, width)``, and class indices int64 of shape ``(n,)``."""


def splits(
    train: Labelled,
    test: Labelled | None,
    classes: tuple[str, ...],
    *,
    seed: int,
    clean_share: float | None,
    clean_count: int | None,
    default_share: float = 0.01,
    test_share: float = 0.2,
    groups: Tensor | None = None,
    flip: bool,
) -> Splits:
    """`unbackdoor.splitting.split_classes` for images; ``flip`` says whether a mirror image is of the same class."""
    return split_classes(
        Batch(*train),
        None if test is None else Batch(*test),
        classes,
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        default_share=default_share,
        test_share=test_share,
        groups=groups,
        hints={"flip": flip},
    )
