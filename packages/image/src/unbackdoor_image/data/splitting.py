"""The three parts of a data set of images."""

from __future__ import annotations

from torch import Tensor

from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.splitting import split_classes
from unbackdoor.errors import BadData
from unbackdoor.task import Batch

__all__ = ["splits"]


def splits(
    train: Batch,
    test: Batch | None,
    *,
    seed: int,
    clean_share: float | None,
    clean_count: int | None,
    default_share: float = 0.01,
    test_share: float = 0.2,
    groups: Tensor | None = None,
    flip: bool,
) -> Splits:
    """`split_classes` for images; ``flip`` says whether a mirror image is of the same class.

    Raises:
        BadData: Training and test images differ in size, or see there.
    """
    if test is not None and train.inputs.shape[1:] != test.inputs.shape[1:]:
        shapes = [" x ".join(map(str, part.inputs.shape[:0:-1])) for part in (train, test)]
        raise BadData(
            f"training images are {shapes[0]} and test images {shapes[1]}; give size=... to bring them to one."
        )
    parts = (train, *(() if test is None else (test,)))
    return split_classes(
        train,
        test,
        max((part.classes or () for part in parts), key=len),
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        default_share=default_share,
        test_share=test_share,
        groups=groups,
        hints={"flip": flip},
    )
