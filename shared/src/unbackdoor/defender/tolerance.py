"""The budget of clean accuracy: the one rule by which every method chooses a threshold, a strength or a last step.

The rule: of all settings that were tried, from the mildest to the strongest, the strongest whose loss of clean accuracy
on the holdout is at most ``max_clean_drop`` points plus one standard error. The holdout is clean samples that nothing
was tuned on; no trigger, no success rate and no test sample has a part in it.

Methods that use it have the options ``max_clean_drop`` (3.0 points) and ``holdout`` (0.2). Iterative ones have
``steps``, ``batch_size`` and ``lr`` as well, and draw every batch through `Task.augment` with ``mix=mixup`` (0.0), as
``ft`` does. BatchNorm keeps its statistics unless a method's idea needs otherwise; then ``updates_buffers`` says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.purifier import Run
from unbackdoor.errors import BadOption
from unbackdoor.measure import evaluating
from unbackdoor.task import Task

__all__ = [
    "FEW",
    "CleanBudget",
    "Verdict",
    "check_drop",
    "last_within",
    "paired_drop",
    "right_answers",
    "strongest_within",
]

FEW = 20
"""Fewer samples than this cannot judge alone."""


@dataclass(frozen=True)
class Verdict:
    """What a setting costs on clean samples.

    Attributes:
        drop: Loss of accuracy against the given model, in percentage points; negative for a gain.
        error: Its standard error over the samples, paired, in points.
        within: Whether ``drop <= max_clean_drop + error``.
    """

    drop: float
    error: float
    within: bool


@dataclass(frozen=True)
class CleanBudget:
    """Judges a changed model by clean samples that the given model was asked about before.

    Attributes:
        judges: Sets of samples that judge: the holdout, and the tuning samples too where the holdout is too small.
        given: Which of them the given model answers rightly, shape ``(n,)``.
        max_clean_drop: In percentage points.
        task: The kind of problem.
        run: Its log takes every verdict.
    """

    judges: Sequence[CleanSet]
    given: Tensor
    max_clean_drop: float
    task: Task
    run: Run

    @classmethod
    def of(
        cls,
        model: nn.Module,
        task: Task,
        clean: CleanSet,
        run: Run,
        max_clean_drop: float,
        *,
        judges: Sequence[CleanSet] | None = None,
    ) -> CleanBudget:
        """Ask ``model``, as it is now, about the samples that will judge.

        Args:
            model: The given model, before anything of it is changed.
            task: The kind of problem.
            clean: The tuning samples, which judge together with the holdout where that has fewer than 20.
            run: With the holdout; gets a notice in that case.
            max_clean_drop: The budget in percentage points.
            judges: Who judges instead; for methods that tune on no sample, whom all may judge.

        Raises:
            BadOption: ``max_clean_drop`` is negative, infinite or NaN.
        """
        check_drop(max_clean_drop)
        if judges is not None:
            return cls(judges, _answers(model, judges, task), max_clean_drop, task, run)
        judges = [] if run.holdout is None else [run.holdout]
        held = sum(map(len, judges))
        if held < FEW:
            judges = [*judges, clean]
            run.notice(
                f"{held} samples are held out, too few to judge by, so the loss of clean accuracy was measured on all "
                f"{held + len(clean)} clean samples, tuned on or not: it is larger on new ones. Give more samples."
            )
        return cls(judges, _answers(model, judges, task), max_clean_drop, task, run)

    def judge(self, model: nn.Module, *, log: bool = True, **said: float) -> Verdict:
        """Measure ``model`` as it is now, in eval mode, and log it; ``said`` are further scalars of the log's line."""
        drop, error = paired_drop(self.given, _answers(model, self.judges, self.task))
        verdict = Verdict(drop, error, drop <= self.max_clean_drop + error)
        if log:
            self.run.log.append({**said, "drop": drop, "standard_error": error, "within": float(verdict.within)})
        return verdict


def strongest_within(
    levels: Iterable[float],
    apply: Callable[[float], object],
    budget: CleanBudget,
    model: nn.Module,
    *,
    what: str = "level",
    patience: int | None = None,
) -> float | None:
    """Prune as much as the budget allows: try every level and keep the strongest that is within it.

    Args:
        levels: From the mildest to the strongest; "no change" need not be among them.
        apply: Brings ``model`` to a level, whatever level it was at before. It is called once more at the end.
        budget: Judges.
        model: What ``apply`` changes.
        what: The level's name in the log, such as ``"threshold"`` or ``"pruned"``.
        patience: Stop after so many levels outside the budget one after another; None tries all of them.

    Returns:
        The level that was kept. None where no level is within the budget: ``model`` is then at the last level that was
        tried, the caller puts the given state back, and a notice says so.
    """
    chosen, mildest, outside = None, None, 0
    for level in levels:
        apply(level)
        said: dict[str, Any] = {what: level}
        verdict = budget.judge(model, **said)
        mildest = verdict if mildest is None else mildest
        chosen, outside = (level, 0) if verdict.within else (chosen, outside + 1)
        if patience is not None and outside >= patience:
            break
    if chosen is not None:
        apply(chosen)
    elif mildest is not None:
        budget.run.notice(
            f"even the mildest {what} cost {mildest.drop:.1f} points of clean accuracy, more than the "
            f"{budget.max_clean_drop:g} allowed (max_clean_drop), so nothing was pruned by it."
        )
    return chosen


def last_within(
    rounds: int,
    advance: Callable[[int], None],
    tensors: Callable[[], Mapping[str, Tensor]],
    budget: CleanBudget,
    model: nn.Module,
) -> int | None:
    """Tune round after round and end with the last round that is within the budget, not with the last of all.

    A method that tunes away from the given model grows stronger with every round, so the last one within the budget is
    the strongest. All rounds are run, since a loss of accuracy at the start is often made good later.

    Args:
        rounds: Number of rounds, at least 1.
        advance: ``advance(i)`` runs round ``i`` (from 1) on from the current values.
        tensors: The values that rounds change, by name, such as ``model.state_dict``; they are put back in place.
        budget: Judges.
        model: What is judged after each round.

    Returns:
        The round that was kept. None where none was within the budget: the one that cost least stays, with a notice.

    Raises:
        BadOption: ``rounds`` is below 1.
    """
    if rounds < 1:
        raise BadOption(f"rounds is {rounds}; it must be at least 1.")
    kept: tuple[int, Verdict, dict[str, Tensor]] | None = None
    for turn in range(1, rounds + 1):
        advance(turn)
        verdict = budget.judge(model, round=turn)
        if kept is None or verdict.within or (not kept[1].within and verdict.drop < kept[1].drop):
            kept = turn, verdict, {name: value.detach().clone() for name, value in tensors().items()}
    assert kept is not None
    turn, verdict, values = kept
    with torch.no_grad():
        for name, value in tensors().items():
            value.copy_(values[name])
    if verdict.within:
        return turn
    budget.run.notice(
        f"every round cost more clean accuracy than the {budget.max_clean_drop:g} points allowed (max_clean_drop): "
        f"the one that cost least, {verdict.drop:.1f}, was kept all the same."
    )
    return None


@torch.no_grad()
def right_answers(model: nn.Module, clean: CleanSet, task: Task) -> Tensor:
    """Which of the clean samples ``model`` answers rightly, in eval mode: bool (or degrees) of shape ``(n,)``."""
    with evaluating(model):
        parts = [task.correct(task.predict(model, b.inputs), b.targets) for b in clean.once(500)]
    return torch.cat(parts)


def paired_drop(given: Tensor, now: Tensor) -> tuple[float, float]:
    """Loss of accuracy in percentage points and its standard error over the pairs; both tensors have shape ``(n,)``."""
    difference = 100.0 * (given.double() - now.double())
    error = float(difference.std(correction=0)) / math.sqrt(len(difference))
    return float(difference.mean()), error


def check_drop(max_clean_drop: float) -> None:
    """Refuse a budget that is none.

    Raises:
        BadOption: It is negative, infinite or NaN.
    """
    if not 0 <= max_clean_drop < math.inf:
        raise BadOption(f"max_clean_drop is {max_clean_drop}; give percentage points of at least 0.")


def _answers(model: nn.Module, judges: Sequence[CleanSet], task: Task) -> Tensor:
    return torch.cat([right_answers(model, samples, task) for samples in judges])
