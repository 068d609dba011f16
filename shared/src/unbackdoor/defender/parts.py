"""Clean samples in three parts: to tune on, to choose by and to report on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unbackdoor.data import CleanSet
from unbackdoor.defender.run import Run
from unbackdoor.errors import BadData, BadOption
from unbackdoor.holding_out import parted
from unbackdoor.task import Task

__all__ = ["Parts", "parts_of"]

_CHOOSING = 2 / 3
"""Of the samples held out for a method that chooses; figures are reported on the rest."""


_FEWEST = 2
"""Samples of a part: one alone says nothing, and some models cannot answer it."""


@dataclass(frozen=True)
class Parts:
    """Clean samples by what they are for; no sample, and no group of near copies, is in two of them.

    Attributes:
        tune: Samples that the method gets.
        choose: Those by which it chooses, see `Run.holdout`. None where it chooses nothing or none could be held out.
            Where a method tunes on none, these are those of ``tune``.
        report: Positions of the samples that figures are measured on; None where none could be held out.
    """

    tune: CleanSet
    choose: CleanSet | None
    report: Tensor | None


def parts_of(clean: CleanSet, task: Task, run: Run, share: float, *, tunes: bool, chooses: bool) -> Parts:
    """Part clean samples, in proportion of their classes.

    What is tuned on depends on ``run.generator`` and ``share`` alone, and not on whether the method chooses.

    Args:
        clean: All that are used, with their groups.
        task: Says which classes keep their proportions.
        run: Draws which; gets a notice where a part is missing that was not left out on request.
        share: Of samples that are not tuned on, in [0, 1): all to report on, or two thirds to choose by.
        tunes: Whether the method tunes on samples. Otherwise it chooses by all that are not reported on.
        chooses: Whether it chooses anything by clean accuracy.

    Raises:
        BadOption: ``share`` lies outside its range.
    """
    if not 0 <= share < 1:
        raise BadOption(f"holdout is {share}; the share of clean samples that is held out must lie in [0, 1).")
    held = None if share == 0 else _held_out(clean, task, run, share)
    if held is None:
        return Parts(clean, clean if chooses and not tunes else None, None)
    rest = clean.without(held.tolist())
    if not chooses or not tunes:
        return Parts(rest, rest if chooses else None, held)
    own = torch.Generator().manual_seed(run.generator.initial_seed())
    groups = None if clean.groups is None else clean.groups[held]
    first, second = parted(len(held), _CHOOSING, own, groups)
    if min(len(first), len(second)) < _FEWEST:
        run.notice(
            f"{len(held)} clean samples could be held out, which the method chose by, so there are none to report on: "
            "how good the result is was not measured. Give more samples."
        )
        return Parts(rest, clean.part(held), None)
    return Parts(rest, clean.part(held[first]), held[second])


def _held_out(clean: CleanSet, task: Task, run: Run, share: float) -> Tensor | None:
    """Positions of the samples that are not tuned on; None, with a notice, where that cannot be done."""
    strata = task.strata(clean.samples.targets)
    if len(clean) == 1:
        run.notice("one clean sample was tuned on, so there is none to measure the result on. Give more samples.")
        return None
    if strata is not None and len(clean) < 2 * (classes := len(strata.unique())):
        run.notice(
            f"there are {len(clean)} clean samples of {classes} classes: one that is held out would be all that is "
            "known of its class, so none was, and how good the result is was not measured. holdout=0 leaves everything "
            "else to the options too."
        )
        return None
    try:
        held = clean.held_out(share, run.generator, strata)
    except BadData as error:
        run.notice(f"{error} How good the result is was not measured.")
        return None
    if len(held) >= _FEWEST:
        return held
    run.notice(
        f"a share of {share:g} of {len(clean)} clean samples is a single one, which says nothing, so none was held out "
        "and how good the result is was not measured. Give more samples, or a larger holdout."
    )
    return None
