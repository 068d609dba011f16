"""Which class labels can be used with a model's logits, and what to tell of those that cannot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unbackdoor.errors import BadData, SingleClass
from unbackdoor.task import Batch
from unbackdoor.tree import leaves

__all__ = ["check_labels"]

_SHOWN = 12


def check_labels(targets: Any, logits: Any) -> list[str]:
    """Refuse labels that are no class indices of this model; return notices on classes that never occur.

    Args:
        targets: Labels of all clean samples, or the samples themselves: a `Batch`, whose names of files and classes
            then stand in the messages.
        logits: The model's output for the first few.

    Raises:
        BadData: The output is no matrix of logits, or the labels are of the wrong form or out of range.
        SingleClass: The labels are all alike.
    """
    samples = targets if isinstance(targets, Batch) else Batch((), targets)
    targets = samples.targets
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        given = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise BadData(
            f"the model returned {given}; classification needs logits of shape (samples, classes), one number for each "
            "sample and class. Give a classifier, or wrap the model so that its forward returns the logits."
        )
    classes = logits.shape[1]
    _check_form(targets, classes)
    labels = targets.tolist()  # Python's own numbers: torch has no arithmetic for unsigned ones
    seen = sorted(set(labels))
    wrong = [label for label in seen if not 0 <= label < classes]
    if wrong:
        raise BadData(_out_of_range(wrong, seen, classes, labels, samples))
    if len(seen) == 1 and classes > 1:
        raise SingleClass(
            f"all {len(labels)} clean samples are of {samples.class_name(seen[0])}; a model tuned on a single class "
            f"answers it always. Give samples of several classes, if possible of all {classes}."
        )
    missing = sorted(set(range(classes)) - set(seen))
    if missing:
        which = _listed([samples.class_name(label).removeprefix("class ") for label in missing])
        found = f"there is no clean sample of {len(missing)} of {classes} classes: {which}."
        return [f"{found} Their accuracy may fall unseen; check it on samples of your own."]
    return []


def _out_of_range(wrong: list[int], seen: list[int], classes: int, labels: list[int], samples: Batch) -> str:
    place = labels.index(wrong[0])
    which = f" ({samples.sample_name(place)} has label {wrong[0]})"
    text = (
        f"labels {_listed(list(map(str, wrong)))} do not exist in a model with {classes} outputs, whose classes are "
        f"0..{classes - 1}{which}. "
    )
    if min(seen) == 1 and max(seen) == classes:
        return text + "The labels seem to start at 1: subtract 1."
    if min(seen) < 0:
        return text + "Leave out samples without a label (often marked -1); labels are class numbers from 0."
    return text + "Check the number and the order of the classes in the data against those of the model."


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


def _listed(words: list[str]) -> str:
    shown = ", ".join(words[:_SHOWN])
    return shown if len(words) <= _SHOWN else f"{shown} and {len(words) - _SHOWN} more"
