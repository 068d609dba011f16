"""Which class labels can be used with a model's logits, and what to tell of those that cannot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unbackdoor.errors import BadData, SingleClass
from unbackdoor.tree import leaves

__all__ = ["check_labels"]

_SHOWN = 12


def check_labels(targets: Any, logits: Any) -> list[str]:
    """Refuse labels that are no class indices of this model; return notices on classes that never occur.

    Args:
        targets: Labels of all clean samples.
        logits: The model's output for the first few.

    Raises:
        BadData: The output is no matrix of logits, or the labels are of the wrong form or out of range.
        SingleClass: The labels are all alike.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise BadData(
            f"the model returned {given}; classification needs logits of shape (batch, classes). "
            "Give a classifier, or wrap the model so that its forward returns the logits."
        )
    classes = logits.shape[1]
    _check_form(targets, classes)
    seen = torch.unique(targets).tolist()
    wrong = [label for label in seen if not 0 <= label < classes]
    if wrong:
        raise BadData(
            f"labels {_listed(wrong)} do not exist in a model with {classes} outputs, whose classes are "
            f"0..{classes - 1}. Check the class order of the data and num_classes of the model"
            + (" (labels that start at 1: subtract 1)." if min(seen) == 1 and max(seen) == classes else ".")
        )
    if len(seen) == 1 and classes > 1:
        raise SingleClass(
            f"all {len(targets)} clean samples are of class {seen[0]}; tuning on a single class makes the model answer "
            f"it always. Give samples of several classes, if possible of all {classes}."
        )
    missing = sorted(set(range(classes)) - set(seen))
    if missing:
        listed = f"no clean sample of {len(missing)} of {classes} classes: {_listed(missing)}."
        return [f"{listed} Their accuracy may fall; check it on samples of your own."]
    return []


def _check_form(targets: Any, classes: int) -> None:
    found = leaves(targets)
    if not isinstance(targets, Tensor):
        raise BadData(
            f"labels are a {type(targets).__name__} of {len(found)} tensors; give one tensor of class indices."
        )
    if targets.ndim == 2 and targets.shape[1] == 1:
        raise BadData(
            f"labels have shape {tuple(targets.shape)}; class indices have shape (n,): use targets.squeeze(1)."
        )
    if targets.ndim == 2 and targets.shape[1] == classes:
        raise BadData(
            f"labels have shape {tuple(targets.shape)}, which looks one-hot; give class indices: targets.argmax(1). "
            "Samples with several labels each are another kind of task."
        )
    if targets.ndim != 1:
        raise BadData(f"labels have shape {tuple(targets.shape)}; give class indices of shape (n,).")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype is torch.bool:
        raise BadData(f"labels are {targets.dtype}; give class indices as integers: targets.long().")


def _listed(labels: list[int]) -> str:
    shown = ", ".join(map(str, labels[:_SHOWN]))
    return shown if len(labels) <= _SHOWN else f"{shown} and {len(labels) - _SHOWN} more"
