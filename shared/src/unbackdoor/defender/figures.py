"""What a purification is measured by, on samples that it neither tuned on nor chose by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.outcome import evidence, fault, thin
from unbackdoor.defender.parts import Parts
from unbackdoor.defender.preflight.standing import Standing
from unbackdoor.defender.tolerance import right_answers
from unbackdoor.measure import clean_metrics
from unbackdoor.task import Task

__all__ = ["Figures", "Found", "fault_of", "found_of", "remarks"]


@dataclass(frozen=True)
class Figures:
    """What one model is measured by.

    Attributes:
        metrics: The task's, in percent, the headline first.
        by_class: Samples and percentage of right answers of each class, by its number; empty without classes.
        right: Which samples it answers rightly, or how well, float64 of shape ``(n,)`` on the CPU.
    """

    metrics: Mapping[str, float]
    by_class: Mapping[str, tuple[int, float]]
    right: Tensor

    @classmethod
    def of(cls, model: nn.Module, judged: CleanSet, task: Task) -> Self:
        """Measure ``model`` as it is now."""
        right = right_answers(model, judged, task).double().cpu()
        strata = task.strata(judged.samples.targets)
        members = {} if strata is None else {int(one): strata.cpu() == one for one in strata.cpu().unique()}
        by_class = {str(one): (int(of.sum()), float(100 * right[of].mean())) for one, of in members.items()}
        return cls(clean_metrics(model, judged.samples, task), by_class, right)


@dataclass(frozen=True)
class Found:
    """What was measured of one purification, and what is wrong with it; see `unbackdoor.report.Report`."""

    before: Mapping[str, float]
    after: Mapping[str, float]
    by_class: Mapping[str, Mapping[str, float]]
    evidence: Mapping[str, Any]
    fault: str | None
    given_back: bool


def found_of(
    parts: Parts,
    clean: CleanSet,
    figures: tuple[Figures, Figures],
    standings: tuple[Standing, Standing],
    wrong: str | None,
    *,
    given_back: bool,
) -> Found:
    """Put together what is reported; nothing is where no sample could be held out.

    Args:
        parts: Of ``clean``.
        clean: All samples that were used.
        figures: Of the given and of the purified model, on the report part.
        standings: Of both, on all of ``clean``.
        wrong: Of `fault_of`.
        given_back: Whether the given model comes back.
    """
    before, after = figures
    if parts.report is None:
        nothing = dict.fromkeys(before.metrics, math.nan)
        return Found(nothing, nothing, {}, {"samples": 0}, wrong, given_back)
    by_class = {
        name: {"samples": count, "before": share, "after": after.by_class[name][1]}
        for name, (count, share) in before.by_class.items()
    }
    groups = None if clean.groups is None else clean.groups[parts.report]
    was, now = (one.part(parts.report) for one in standings)
    return Found(
        before.metrics,
        after.metrics,
        by_class,
        evidence(was, now, (before.right, after.right), groups),
        wrong,
        given_back,
    )


def fault_of(
    parts: Parts, figures: tuple[Figures, Figures], standings: tuple[Standing, Standing], task: Task, max_loss: float
) -> str | None:
    """What is wrong with the purified model on the samples that are reported on, or on all; see `outcome.fault`."""
    before, after = figures
    given, now = standings
    headline = next(iter(before.metrics))
    share = getattr(task.meters()[headline], "scale", 100.0) == 100.0
    drop = (before.metrics[headline], after.metrics[headline]) if share else (math.nan, math.nan)
    if parts.report is None:
        return fault(given, now, *drop, max_loss)
    told = fault(given.part(parts.report), now.part(parts.report), *drop, max_loss)
    return told or fault(given, now, given.accuracy, now.accuracy, max_loss)


def remarks(found: Found, given: Standing, limit: float | None) -> Iterator[str]:
    """What a user should know of the figures: that they rest on little, or that they are beyond the tolerance."""
    if (little := thin(found.evidence, given)) is not None:
        yield f"{little}."
    lost = next(iter(found.before.values())) - next(iter(found.after.values()))
    if limit is not None and lost > limit:
        low, high = found.evidence["drop"]
        yield (
            f"on the {found.evidence['samples']} samples that the figures are measured on {lost:.1f} points were lost "
            f"(95 %: {low:.1f} to {high:.1f}), more than max_clean_drop={limit:g} allows; on those that chose it was "
            "not so."
        )
