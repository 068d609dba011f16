"""Label rows: which of the classes an image shows, in the forms that targets may have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unbackdoor.errors import BadData
from unbackdoor.tree import Tree, leaves

__all__ = ["check_rows", "hard_rows", "rarest_class", "shares"]

_SHOWN = 12


def shares(targets: Tree, dtype: torch.dtype) -> Tensor:
    """The targets in any of their forms as numbers in [0, 1] of shape ``(batch, classes)``.

    Args:
        targets: Zeros and ones (integers or bool), probabilities (floats), or the triple ``(a, b, lambda)`` of MixUp,
            which becomes ``lambda a + (1 - lambda) b``.
        dtype: Of the result.
    """
    if isinstance(targets, tuple | list):
        first, second, share = targets
        weight = share.to(dtype).unsqueeze(1)
        mixed: Tensor = weight * shares(first, dtype) + (1 - weight) * shares(second, dtype)
        return mixed
    rows: Tensor = targets
    return rows.to(dtype)


def hard_rows(targets: Tree) -> Tensor:
    """Zeros and ones, int64 of shape ``(batch, classes)``: what is at least half there."""
    return (shares(targets, torch.float32) >= 0.5).long()


def rarest_class(targets: Tree) -> Tensor:
    """For each row the rarest of its classes, int64 of shape ``(batch,)``; the number of classes for an empty row.

    Groups by the rarest class keep, when each is divided in the same proportion, some of every class on either side.
    """
    rows = hard_rows(targets)
    frequency = rows.sum(0)
    masked = torch.where(rows > 0, frequency, rows.shape[0] + 1)
    return torch.where(rows.any(1), masked.argmin(1), rows.shape[1])


def check_rows(targets: Any, logits: Any) -> list[str]:
    """Refuse label rows that do not fit the logits; return notices on classes without an image.

    Args:
        targets: Of all clean samples.
        logits: The model's output for the first few.

    Raises:
        BadData: The output is no matrix, or labels are of the wrong shape or type, not 0 and 1, or all alike.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise BadData(
            f"the model returned {given}; multi-label classification needs logits of shape (batch, classes). A model "
            "with one answer for each place of the image needs a head, such as unbackdoor_multilabel.MLDecoder."
        )
    classes = logits.shape[1]
    if not isinstance(targets, Tensor) or targets.ndim != 2 or targets.shape[1] != classes:
        given = tuple(targets.shape) if isinstance(targets, Tensor) else f"{len(leaves(targets))} tensors"
        hint = " One class index for each image is another kind of task." if getattr(targets, "ndim", 0) == 1 else ""
        raise BadData(
            f"labels are {given}; give rows of zeros and ones of shape (n, {classes}), one for a class.{hint}"
        )
    if targets.is_floating_point() or targets.is_complex():
        raise BadData(f"labels are {targets.dtype}; give zeros and ones as integers: targets.long().")
    found = torch.unique(targets.long()).tolist()
    if not set(found) <= {0, 1}:
        raise BadData(
            f"labels hold {', '.join(map(str, found[:_SHOWN]))}; a class is there (1) or not (0). Where data mark a "
            "class as unknown, decide for one of the two or leave the image out."
        )
    rows = targets.long()
    if len(rows) > 1 and bool((rows == rows[0]).all()):
        raise BadData(
            f"all {len(rows)} clean samples have the same labels; tuning on them makes the model answer them always."
        )
    absent = (rows.sum(0) == 0).nonzero().flatten().tolist()
    if not absent:
        return []
    shown = ", ".join(map(str, absent[:_SHOWN])) + (f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else "")
    notice = (
        f"no clean image shows {len(absent)} of {classes} classes: {shown}. Their precision may fall, and mAP leaves "
        "them out; check them on images of your own."
    )
    return [notice]
