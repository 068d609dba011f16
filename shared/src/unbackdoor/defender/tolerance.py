"""How much clean accuracy a purification may cost: the one rule by which a threshold, a strength or a round is chosen.

The rule: a changed model is accepted where ``drop + error <= max_clean_drop``. ``drop`` is its loss of accuracy against
the given model on samples that nothing was tuned on and that no figure is reported on (`Run.holdout`), in percentage
points; ``error`` is one standard error of it, over pairs, and over groups where samples are near copies. The error
counts against the method: what cannot be told from a loss beyond the tolerance is not accepted. Of all settings that
were tried, from the mildest to the strongest, the strongest that is accepted is taken, once; where none is accepted,
the given model comes back (`BeyondTolerance`). No trigger, no success rate and no test sample has a part in it.

Why an error of the observed pairs, and no exact test at the tolerance itself: such a test at the level of one standard
error (16 %) rejects "the loss is 3 points" by 61 samples that are all as before, and by fewer never, so small sets
could accept nothing. Here unchanged answers are accepted however few they are. With n samples a true loss of d then
passes with ``(1 - d)^n``: of 5 points, 0.16 for n = 36 (0.73 where the error counts for the method), 0.04 for n = 100.
Fewer than 20 samples let too much pass, so the tuned ones, which a sound method loses last, have to agree then.

Methods that choose have the option ``max_clean_drop`` (3.0 points); every method has ``holdout`` (0.2). Iterative ones
have ``steps``, ``batch_size`` and ``lr`` as well, and draw every batch through `Task.augment` with ``mix=mixup`` (0.0),
as ``ft`` does. BatchNorm keeps its statistics unless a method's idea needs otherwise; then ``updates_buffers`` says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.run import Run
from unbackdoor.errors import BadOption, BeyondTolerance
from unbackdoor.measure import evaluating
from unbackdoor.task import Task

__all__ = [
    "FEW",
    "AccuracyTolerance",
    "CleanDrop",
    "check_drop",
    "last_within",
    "paired_drop",
    "right_answers",
    "strongest_within",
]

FEW = 20
"""Fewer samples than this cannot judge alone."""

_RISK = 0.2


@dataclass(frozen=True)
class CleanDrop:
    """What a change costs on clean samples.

    Attributes:
        drop: Loss of accuracy against the given model, in percentage points; negative for a gain.
        error: Its standard error, in points.
        within: Whether ``drop + error`` is at most the tolerance.
    """

    drop: float
    error: float
    within: bool

    def __str__(self) -> str:
        """``5.6 +- 3.8 points``."""
        return f"{self.drop:.1f} +- {self.error:.1f} points"


@dataclass(frozen=True)
class AccuracyTolerance:
    """Accepts a changed model by clean samples that the given model was asked about before.

    Attributes:
        judges: Sets of samples, each of which has to accept: those held out to choose by, and the tuning samples too
            where those are few.
        given: Which of each set's samples the given model answers rightly, of shape ``(n,)``.
        max_clean_drop: In percentage points.
        task: The kind of problem.
        run: Its log takes what is measured.
    """

    judges: Sequence[CleanSet]
    given: Sequence[Tensor]
    max_clean_drop: float
    task: Task
    run: Run

    @classmethod
    def of(cls, model: nn.Module, task: Task, clean: CleanSet, run: Run, max_clean_drop: float) -> AccuracyTolerance:
        """Ask ``model``, as it is now, about the samples that will judge.

        Args:
            model: The given model, before anything of it is changed.
            task: The kind of problem.
            clean: The tuning samples, which have to accept as well where fewer than 20 are held out to choose by.
            run: With these; gets a notice in that case.
            max_clean_drop: The tolerance in percentage points.

        Raises:
            BadOption: ``max_clean_drop`` is negative, infinite or NaN.
        """
        check_drop(max_clean_drop)
        judges = [] if run.holdout is None else [run.holdout]
        held = sum(map(len, judges))
        if held < FEW and run.holdout is not clean:
            judges = [*judges, clean]
            passes = 100 * (1 - _RISK ** (1 / held)) if held else math.inf
            run.notice(
                f"{held} clean samples were held out to choose by, and a loss of {passes:.0f} points passes so few "
                f"with a probability of {_RISK:.0%}, so the {len(clean)} that were tuned on had to accept the result "
                "too. Give more samples."
                if held
                else f"no clean samples were held out to choose by, so the loss of clean accuracy was measured on the "
                f"{len(clean)} that were tuned on: it is larger on new ones. Give more samples."
            )
        return cls(judges, [right_answers(model, judge, task) for judge in judges], max_clean_drop, task, run)

    def judge(self, model: nn.Module, *, log: bool = True, **said: float) -> CleanDrop:
        """Measure ``model`` as it is now, in eval mode, on the set that speaks most against it, and log that.

        Args:
            model: The changed model.
            log: Whether to log it.
            **said: Further scalars of the log's line.
        """
        worst = max(map(self._drop, self._now(model), self.given, self.judges), key=lambda one: one.drop + one.error)
        if log:
            self.run.log.append(
                {**said, "drop": worst.drop, "standard_error": worst.error, "within": float(worst.within)}
            )
        return worst

    def accepts(self, model: nn.Module, **said: float) -> bool:
        """Whether ``model``, as it is now, costs no more than the tolerance; logged as by `judge`."""
        return self.judge(model, log=True, **said).within

    def check(self, model: nn.Module) -> None:
        """Refuse ``model``, as a method leaves it, where it costs more than the tolerance.

        Raises:
            BeyondTolerance: It does; with `Run.allow_drop` the report tells it instead.
        """
        found = self.judge(model, log=False)
        if found.within:
            return
        refusal = self.refusal(found, "the result")
        if not self.run.allow_drop:
            raise refusal
        self.run.overruled.append(f"{refusal}.")
        self.run.notice(f"{refusal}. It was kept all the same, as asked.")

    def refusal(self, found: CleanDrop, what: str) -> BeyondTolerance:
        """What to raise where ``what``, the mildest result that there is, lost too much."""
        return BeyondTolerance(
            f"{what} lost {found} of clean accuracy on samples that choose, more than max_clean_drop="
            f"{self.max_clean_drop:g} allows, the error counted against it"
        )

    def _now(self, model: nn.Module) -> list[Tensor]:
        return [right_answers(model, samples, self.task) for samples in self.judges]

    def _drop(self, now: Tensor, given: Tensor, samples: CleanSet) -> CleanDrop:
        drop, error = paired_drop(given, now, samples.groups)
        return CleanDrop(drop, error, min(drop + error, 100.0) <= self.max_clean_drop)


def strongest_within(
    levels: Iterable[float],
    apply: Callable[[float], object],
    tolerance: AccuracyTolerance,
    model: nn.Module,
    *,
    what: str = "level",
    patience: int | None = None,
    required: bool = False,
) -> float | None:
    """Prune as much as the tolerance allows: try every level and keep the strongest that is accepted.

    Args:
        levels: From the mildest to the strongest; "no change" need not be among them.
        apply: Brings ``model`` to a level, whatever level it was at before. It is called once more at the end.
        tolerance: Accepts or does not.
        model: What ``apply`` changes.
        what: The level's name in the log, such as ``"threshold"`` or ``"pruned"``.
        patience: Stop after so many levels that are not accepted one after another; None tries all of them.
        required: Whether the method has nothing to give where no level is accepted.

    Returns:
        The level that was kept. None where no level is accepted: ``model`` is then at the last level that was tried,
        and the caller puts the given state back; a notice says so. With ``required`` and `Run.allow_drop` the level
        that cost least is kept then.

    Raises:
        BeyondTolerance: No level is accepted although one is ``required``.
    """
    chosen, tried, outside = None, list[tuple[CleanDrop, float]](), 0
    for level in levels:
        apply(level)
        said: dict[str, Any] = {what: level}
        found = tolerance.judge(model, **said)
        tried.append((found, level))
        chosen, outside = (level, 0) if found.within else (chosen, outside + 1)
        if patience is not None and outside >= patience:
            break
    if chosen is None and tried and required:
        least, level = min(tried, key=lambda one: one[0].drop)
        refusal = tolerance.refusal(least, f"even the {what} of {level:.4g}, the one that cost least,")
        if not tolerance.run.allow_drop:
            raise refusal
        tolerance.run.notice(f"{refusal}; it was kept as asked.")
        chosen = level
    if chosen is not None:
        apply(chosen)
    elif tried:
        tolerance.run.notice(
            f"even the mildest {what} lost {tried[0][0]} of clean accuracy, more than max_clean_drop="
            f"{tolerance.max_clean_drop:g} allows, so nothing was pruned by it."
        )
    return chosen


def last_within(
    rounds: int,
    advance: Callable[[int], None],
    tensors: Callable[[], Mapping[str, Tensor]],
    tolerance: AccuracyTolerance,
    model: nn.Module,
) -> int:
    """Tune round after round and end with the last round that is accepted, not with the last of all.

    A method that tunes away from the given model grows stronger with every round, so the last one that is accepted is
    the strongest. All rounds are run, since a loss of accuracy at the start is often made good later.

    Args:
        rounds: Number of rounds, at least 1.
        advance: ``advance(i)`` runs round ``i`` (from 1) on from the current values.
        tensors: The values that rounds change, by name, such as ``model.state_dict``; they are put back in place.
        tolerance: Accepts or does not.
        model: What is judged after each round.

    Returns:
        The round that was kept. With `Run.allow_drop` it is, where none was accepted, the one that cost least.

    Raises:
        BeyondTolerance: None was accepted; the values are those from before the first round.
        BadOption: ``rounds`` is below 1.
    """
    if rounds < 1:
        raise BadOption(f"rounds is {rounds}; it must be at least 1.")
    given = _copy(tensors())
    kept: tuple[int, CleanDrop, dict[str, Tensor]] | None = None
    for turn in range(1, rounds + 1):
        advance(turn)
        found = tolerance.judge(model, round=turn)
        if kept is None or found.within or (not kept[1].within and found.drop < kept[1].drop):
            kept = turn, found, _copy(tensors())
    assert kept is not None
    turn, found, values = kept
    refusal = None if found.within else tolerance.refusal(found, f"even round {turn}, the one that cost least,")
    with torch.no_grad():
        for name, value in tensors().items():
            value.copy_((values if refusal is None or tolerance.run.allow_drop else given)[name])
    if refusal is not None:
        if not tolerance.run.allow_drop:
            raise refusal
        tolerance.run.notice(f"{refusal}; it was kept as asked.")
    return turn


@torch.no_grad()
def right_answers(model: nn.Module, clean: CleanSet, task: Task) -> Tensor:
    """Which of the clean samples ``model`` answers rightly, in eval mode: bool (or degrees) of shape ``(n,)``."""
    with evaluating(model):
        parts = [task.correct(task.predict(model, b.inputs), b.targets) for b in clean.once(500)]
    return torch.cat(parts)


def paired_drop(given: Tensor, now: Tensor, groups: Tensor | None = None) -> tuple[float, float]:
    """Loss of accuracy in percentage points and its standard error.

    ``sqrt(sum_g (sum_{i in g} (d_i - mean d))^2) / n`` over groups ``g``; without groups every pair is one.

    Args:
        given: Which samples the given model answers rightly, of shape ``(n,)``.
        now: The same of the changed model.
        groups: Samples of one number are near copies, which err together, of shape ``(n,)``.
    """
    difference = 100.0 * (given.double() - now.double()).cpu()
    rest = difference - difference.mean()
    if groups is not None:
        number = groups.unique(return_inverse=True)[1]
        rest = torch.zeros(int(number.max()) + 1, dtype=rest.dtype).index_add_(0, number, rest)
    return float(difference.mean()), math.sqrt(float(rest.square().sum())) / len(difference)


def check_drop(max_clean_drop: float) -> None:
    """Refuse a tolerance that is none.

    Raises:
        BadOption: It is negative, infinite or NaN.
    """
    if not 0 <= max_clean_drop < math.inf:
        raise BadOption(f"max_clean_drop is {max_clean_drop}; give percentage points of at least 0.")


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}
