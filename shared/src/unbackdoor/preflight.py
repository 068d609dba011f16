"""Before anything is tuned: whether the given model and the clean samples fit each other at all."""

from __future__ import annotations

import math

from torch import Tensor

from unbackdoor.standing import Standing
from unbackdoor.task import Batch

__all__ = ["doubtful", "misfit"]

_DOUBTFUL = 0.01
_LISTED = 10


def misfit(given: Standing, clean: Batch, *, labelled: bool) -> str | None:
    """Why the run should not begin; None where nothing speaks against it.

    Args:
        given: The given model on the clean samples.
        clean: The samples.
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
    if given.at_chance:
        return (
            f"the given model is right on {given.count} of {total} clean samples, no better than one that does not "
            "look at them. Probable causes: another normalisation (mean, std) or range of the inputs, another order of "
            "the classes or a missing one, or weights that were not loaded"
        )
    return None


def doubtful(scores: Tensor) -> list[int]:
    """Samples whose targets the given model finds unlikely (below 1 %), the least likely first."""
    order = scores.argsort()
    return [int(i) for i in order[: int((scores < math.log(_DOUBTFUL)).sum())]]


def doubt(found: list[int], clean: Batch, *, dropped: bool) -> str:
    """What to tell of doubtful samples."""
    listed = ", ".join(map(clean.sample_name, found[:_LISTED]))
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    unnamed = " (counted from 0)" if clean.names is None else ""
    done = "left out" if dropped else "used (drop_doubtful=True leaves them out)"
    return (
        f"the given model finds the targets of {len(found)} of {len(clean)} clean samples unlikely (below "
        f"{_DOUBTFUL:.0%}): {listed}{more}{unnamed}. They were {done}; look whether they are mislabelled or carry a "
        "trigger."
    )
