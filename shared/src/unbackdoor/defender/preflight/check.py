"""Before anything is tuned: whether the given model and the clean samples fit each other at all.

A model that is at chance on the samples, or far below what it expects of itself, is rarely a bad model: more often its
inputs are normalised or sized otherwise, or its outputs mean other classes. Tuning it to such samples ruins it while
the figures rise. So the usual other readings are tried, by forward passes over at most some hundred samples, and where
one fits the labels better beyond doubt the run stops and says what to give.
"""

from __future__ import annotations

import math

from torch import nn

from unbackdoor.defender.preflight.misreading import far_below, misreading
from unbackdoor.defender.preflight.standing import Standing
from unbackdoor.task import Batch, Task

__all__ = ["doubt", "doubtful", "misfit"]

_FAR = 0.5
_DOUBTFUL = 0.01
_LISTED = 10


def misfit(given: Standing, model: nn.Module, clean: Batch, task: Task, *, labelled: bool) -> str | None:
    """Why the run should not begin; None where nothing speaks against it.

    Args:
        given: The given model on the clean samples.
        model: The model itself.
        clean: The samples.
        task: The kind of problem.
        labelled: Whether the method tunes on labels.
    """
    if given.wins is None:
        return None
    total = len(given.wins)
    if labelled and not given.telling and given.constant is not None:
        return (
            f"{round(given.chance * total)} of the {total} clean samples are of {clean.class_name(given.constant)}, "
            "too many of so few: a model that always answered it could not be told from a good one. Give more samples "
            "of other classes"
        )
    if not given.telling:
        return None
    other = misreading(given, model, clean, task)
    if other is not None:
        return other
    right = f"the given model is right on {given.count} of {total} clean samples"
    if given.logits is None:
        right = f"the given model beats a guess that sees no input on {given.count} of {total} clean samples"
    causes = (
        "Probable causes: another normalisation (mean, std), size or range of the inputs, another order of the classes "
        "(classes) or a missing one, or weights that were not loaded"
    )
    if given.at_chance:
        return f"{right}, no more than one that does not look at them. No usual other reading fits better. {causes}"
    confidence = given.confidence
    if confidence is not None and far_below(given, _FAR * confidence):
        return (
            f"{right}, although its own confidence promises {confidence:.0%}. No usual other reading fits better. "
            f"{causes}, or labels that are wrong"
        )
    if given.logits is not None and clean.classes is not None and not given.above_chance:
        outputs, count = given.logits.shape[1], len(clean.classes)
        if count < outputs:
            return (
                f"the clean samples name {count} classes, but the model has {outputs} outputs, and {given.count} right "
                f"answers of {total} do not show which they are. Name the classes of all outputs in their order "
                "(--data-option classes=...)"
            )
    return None


def doubtful(given: Standing) -> list[int]:
    """Samples whose targets the given model finds unlikely (below 1 %), the least likely first."""
    order = given.scores.argsort()
    return [int(i) for i in order[: int((given.scores < math.log(_DOUBTFUL)).sum())]]


def doubt(found: list[int], given: Standing, clean: Batch, *, dropped: bool) -> str:
    """What to tell of doubtful samples: which they are, and what label and model say of the first."""
    listed = ", ".join(map(clean.sample_name, found[:_LISTED]))
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    unnamed = " (counted from 0)" if clean.names is None else ""
    answered = ""
    if given.logits is not None and given.targets is not None:
        label, answer = int(given.targets[found[0]]), int(given.logits[found[0]].argmax())
        answered = f" The first is labelled {clean.class_name(label)}; the model says {clean.class_name(answer)}."
    done = "left out" if dropped else "used (drop_doubtful=True leaves them out)"
    return (
        f"the given model finds the targets of {len(found)} of {len(clean)} clean samples unlikely (below "
        f"{_DOUBTFUL:.0%}): {listed}{more}{unnamed}.{answered} They were {done}; look whether they are mislabelled or "
        "carry a trigger."
    )
