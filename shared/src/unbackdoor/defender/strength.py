"""Attenuate and recover: how strongly to purify, decided by clean samples that are not tuned on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.disturbance import left
from unbackdoor.defender.purifier import Run
from unbackdoor.defender.tolerance import CleanBudget, Verdict, check_drop
from unbackdoor.errors import BadOption
from unbackdoor.task import Task

__all__ = ["Attenuable", "Pace", "attenuate_and_recover"]

_RETRIES = 3
_COLLAPSE = 15.0
"""Points of clean accuracy; a first round that costs as much, also in a milder form, did not converge."""
_SLOWER = 8.0
_LONGER = 3
_GENTLE, _GENTLER = 4.0, 8.0
_TURNS = 6
_ENOUGH = 1 / 8
_LEAST = 1 / 64


@dataclass
class Pace:
    """How fast a method's optimisation goes, which the rounds may slow down.

    Attributes:
        factor: Of the learning rate.
    """

    factor: float = 1.0


class Attenuable(Protocol):
    """A handle whose effective weights can be scaled towards zero."""

    def parameters(self) -> dict[str, Tensor]:
        """The tuned values by name."""

    def attenuate_(self, factor: float) -> None:
        """Scale every effective weight, as it is now, by ``factor``."""


def attenuate_and_recover(
    handle: Attenuable,
    tune: Callable[[int, float, str], None],
    model: nn.Module,
    task: Task,
    clean: CleanSet,
    run: Run,
    *,
    steps: int,
    rounds: int,
    attenuation: float,
    max_clean_drop: float,
    pace: Pace | None = None,
) -> None:
    """Scale all sites down alike and let clean samples bring back what they need, round after round.

    Clean data give a backdoor's neurons almost no gradient, so tuning that begins at the given model hardly moves
    them. Begun from attenuated values it hardly moves them either, and so they stay attenuated, while the gradient
    restores the rest. What only a trigger uses shrinks by ``attenuation`` with each round.

    A round counts if the clean accuracy on the holdout, compared sample by sample with the given model, has not
    fallen by more than the budget plus one standard error (on few samples a drop must be clear to stop a
    purification); else the values before it come back and it is tried again with a milder attenuation, the square
    root, so that the budget is spent finely. After three such retries in all, the last round that counted stands, and
    what is left of the steps goes on from it without attenuation: unless it ends beyond the budget, it is kept.
    Where the first round costs less than 15 points and no less in a milder form, it is not the attenuation that costs:
    the stronger form stands, as if it had counted.

    Where the search for disturbances found something in the given model (`Disturber.left`), that judges too. Tuning on
    disturbed samples does most of the work then: there are a third as many rounds, each as much longer, and once a
    round has not clearly lessened what the found things cost on the holdout, it is undone and none follows. It would
    cost accuracy that a holdout is too small to see, and gain nothing that a defender could.

    Where a layer's outputs are far from 0 before BatchNorm takes their mean away, as behind a maximum over points, a
    step on its values moves the outputs several times as much, and the learning rate that suits other networks
    diverges. Elsewhere, as behind a recurrent layer's gates, a round has too few steps to recover in. Both show by a
    first round that costs 15 points or more, and again when it is retried: then the learning rate becomes an eighth and
    the rounds a third as many, each as much longer, at most twice, and all begins anew.

    Where nothing could be held out since classes have a single sample each (`Run.sparse`), nothing tells how much of
    the attenuation is made good on other samples, nor when tuning on so few begins to harm. So there is none, and the
    tuning is as gentle as suffices: two to six rounds of a sixth of the steps, the first at an eighth of the learning
    rate and the others at a quarter, until what was found in the given model costs the tuned samples an eighth of what
    it did. Where nothing was found there is one round, of a third of the steps at a quarter of the learning rate. An
    attenuation of 1 leaves all that as it is given.

    ``rounds=1, attenuation=1`` is the papers' plain optimisation from the given model.

    Args:
        handle: Attached.
        tune: ``tune(steps, share, message)`` runs the method's own optimisation from the current values; ``share``
            rises from ``1 / rounds`` to 1, for what a method makes stronger from round to round.
        model: The attached model.
        task: The kind of problem.
        clean: The tuning samples, which judge too where fewer than 20 are held out.
        run: Its ``holdout`` judges.
        steps: Optimiser steps of all rounds together.
        rounds: Largest number of rounds; never more than there are steps.
        attenuation: Factor of each round, in (0, 1].
        max_clean_drop: Budget in percentage points.
        pace: What ``tune`` multiplies its learning rate by; without one nothing is slowed down.

    Raises:
        BadOption: A value lies outside its range.
    """
    _check(rounds, attenuation, max_clean_drop)
    if run.sparse and attenuation < 1:
        _tune_gently(_Remains.of(handle, model, task, run, [clean]), tune, run, steps, pace or Pace())
        return
    judged = run.holdout is not None or attenuation < 1
    budget = CleanBudget.of(model, task, clean, run, max_clean_drop) if judged else None
    remains = _Remains.of(handle, model, task, run, [] if budget is None or attenuation == 1 else budget.judges)
    rounds = min(rounds if remains.after is None else max(1, rounds // _LONGER), steps)
    going = _Rounds(handle, tune, model, budget, run, pace, steps, rounds, attenuation, attenuation)
    while not remains.settled(going.turn) and going.turn < going.rounds:
        if not going.next():
            break


@dataclass
class _Rounds:
    """The rounds of one purification, and how strongly and fast they go on."""

    handle: Attenuable
    tune: Callable[[int, float, str], None]
    model: nn.Module
    budget: CleanBudget | None
    run: Run
    pace: Pace | None
    steps: int
    rounds: int
    asked: float
    attenuation: float
    turn: int = 0
    retries: int = 0
    cost: float = math.inf

    def next(self) -> bool:
        """One round, with its retries; whether another may follow."""
        self.turn += 1
        before = _copy(self.handle)
        stronger: tuple[float, dict[str, Tensor]] | None = None
        while True:
            verdict = self._tried()
            if verdict is None:
                return True
            if verdict.within:
                self.cost = verdict.drop
                return True
            if self._collapsed(verdict):
                self._slow_down(verdict)
                stronger = None
            elif stronger is not None and stronger[0] <= verdict.drop:
                self.cost, kept = stronger
                _restore(self.handle, kept)
                break
            elif self.retries < _RETRIES and self.attenuation < 1:
                self.retries += 1
                self.attenuation = math.sqrt(self.attenuation)
                if self.turn == 1 and verdict.drop < _COLLAPSE:
                    stronger = verdict.drop, _copy(self.handle)
            elif self.turn > 1:
                _restore(self.handle, before)
                break
            else:
                self.cost = verdict.drop
                break
            _restore(self.handle, before)
        self._end()
        return False

    def _tried(self) -> Verdict | None:
        """One round as strong as it is now; None where nothing judges."""
        if self.attenuation < 1:
            self.handle.attenuate_(self.attenuation)
        message = f"round {self.turn} of {self.rounds}" if self.rounds > 1 else ""
        self.tune(self._each, self.turn / self.rounds, message)
        if self.budget is None:
            return None
        return self.budget.judge(self.model, round=self.turn, attenuation=self.attenuation)

    @property
    def _each(self) -> int:
        """Steps of a round."""
        return math.ceil(self.steps / self.rounds)

    def _collapsed(self, verdict: Verdict) -> bool:
        """Whether a slower pace is what the first round wants."""
        milder = self.retries > 0 or self.attenuation == 1
        slower = self.pace is not None and self.pace.factor > _LEAST
        return self.turn == 1 and verdict.drop >= _COLLAPSE and milder and slower

    def _slow_down(self, verdict: Verdict) -> None:
        assert self.pace is not None
        self.pace.factor /= _SLOWER
        self.run.notice(
            f"the first round of tuning cost {verdict.drop:.1f} points on the held-out samples in a milder form too, "
            f"so tuning began anew with {self.pace.factor:g} of the learning rate, in fewer and longer rounds."
        )
        self.retries, self.attenuation = 0, self.asked
        self.rounds = max(1, self.rounds // _LONGER)

    def _end(self) -> None:
        """Nothing is attenuated any more; the values are those of the last round that stands."""
        assert self.budget is not None
        if self.asked < 1:
            self._recover(max(1, self.turn - 1))
        if self.turn == 1 and self.cost > self.budget.max_clean_drop:
            self.run.notice(
                f"the first round of tuning costs {self.cost:.1f} points on the held-out samples however mild it is, "
                f"more than the {self.budget.max_clean_drop:g} allowed (max_clean_drop); it was kept all the same. "
                "More clean samples or steps may help."
            )

    def _recover(self, last: int) -> None:
        """Spend the steps of the rounds after ``last`` without attenuation; that is kept unless it costs more."""
        assert self.budget is not None
        if last == self.rounds:
            return
        before = _copy(self.handle)
        self.tune((self.rounds - last) * self._each, last / self.rounds, "for what is left of the steps")
        verdict = self.budget.judge(self.model, round=last, attenuation=1.0)
        if verdict.within or verdict.drop < self.cost:
            self.cost = verdict.drop
        else:
            _restore(self.handle, before)


@dataclass
class _Remains:
    """What that which was found in the given model still costs in samples that judge, from round to round."""

    handle: Attenuable
    model: nn.Module
    task: Task
    run: Run
    judges: Sequence[CleanSet]
    after: Tensor | None = None
    kept: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, handle: Attenuable, model: nn.Module, task: Task, run: Run, judges: Sequence[CleanSet]) -> Self:
        """With what it costs the given model; None where nothing was found or nothing judges."""
        made = cls(handle, model, task, run, judges)
        made.after = made.measured() if run.disturbers else None
        return made

    def measured(self) -> Tensor | None:
        now = left(self.run.disturbers[-1], self.task, self.model, self.judges)
        if now is not None:
            self.run.log.append({"left": float(now.mean())})
        return now

    def settled(self, turn: int) -> bool:
        """Whether round ``turn``, not the first, has not clearly lessened it; the values before it come back then."""
        if self.after is None or turn == 0:
            return False
        now = self.measured()
        assert now is not None
        gain = (self.after - now).double()
        if turn > 1 and float(gain.mean()) <= float(gain.std(correction=0)) / math.sqrt(len(gain)):
            _restore(self.handle, self.kept)
            return True
        self.after, self.kept = now, _copy(self.handle)
        return False


def _tune_gently(remains: _Remains, tune: Callable[[int, float, str], None], run: Run, steps: int, pace: Pace) -> None:
    """Rounds without attenuation, until what was found in the given model costs little."""
    given, whole = remains.after, pace.factor
    if given is None:
        each, pace.factor = math.ceil(steps / _LONGER), whole / _GENTLE
        tune(each, 1.0, "")
        said = f"one round, of {each} steps at 1/{_GENTLE:g} of the learning rate"
    else:
        rounds, each, before = min(_TURNS, steps), math.ceil(steps / _TURNS), float(given.mean())
        for turn in range(1, rounds + 1):
            pace.factor = whole / (_GENTLER if turn == 1 else _GENTLE)
            tune(each, 1.0, f"round {turn} of at most {rounds}")
            now = remains.measured()
            assert now is not None
            cost = float(now.mean())
            if turn > 1 and cost <= _ENOUGH * before:
                break
        said = (
            f"{turn} of at most {rounds} rounds, of {each} steps, the first at 1/{_GENTLER:g} of the learning rate and "
            f"the others at 1/{_GENTLE:g} (what the search found in the model still costs {cost:.1f} nats, of "
            f"{before:.1f} before)"
        )
    run.notice(
        f"there are too few clean samples to hold some out, so the method tuned gently: {said}. To decide steps and "
        "rate yourself, give attenuation=1."
    )


def _check(rounds: int, attenuation: float, max_clean_drop: float) -> None:
    if rounds < 1:
        raise BadOption(f"rounds is {rounds}; it must be at least 1.")
    if not 0 < attenuation <= 1:
        raise BadOption(f"attenuation is {attenuation}; it must lie in (0, 1], where 1 means none.")
    check_drop(max_clean_drop)


def _copy(handle: Attenuable) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in handle.parameters().items()}


@torch.no_grad()
def _restore(handle: Attenuable, values: dict[str, Tensor]) -> None:
    for name, value in handle.parameters().items():
        value.copy_(values[name])
