"""Attenuate and recover: how strongly to purify, decided by clean samples that are not tuned on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from unbackdoor.budget import FEW, check_drop, paired_drop, right_answers
from unbackdoor.errors import BadOption
from unbackdoor.purifier import Run
from unbackdoor.task import Task

__all__ = ["Attenuable", "attenuate_and_recover"]

_RETRIES = 3


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
    run: Run,
    *,
    steps: int,
    rounds: int,
    attenuation: float,
    max_clean_drop: float,
) -> None:
    """Scale all sites down alike and let clean samples bring back what they need, round after round.

    Clean data give a backdoor's neurons almost no gradient, so tuning that begins at the given model hardly moves
    them. Begun from attenuated values it hardly moves them either, and so they stay attenuated, while the gradient
    restores the rest. What only a trigger uses shrinks by ``attenuation`` with each round.

    A round counts if the clean accuracy on the holdout, compared sample by sample with the given model, has not
    fallen by more than the budget plus one standard error (on few samples a drop must be clear to stop a
    purification); else the values before it come back and it is tried again with a milder attenuation, the square
    root, so that the budget is spent finely. After three such retries in all, the last round that counted stands.

    ``rounds=1, attenuation=1`` is the papers' plain optimisation from the given model.

    Args:
        handle: Attached.
        tune: ``tune(steps, share, message)`` runs the method's own optimisation from the current values; ``share``
            rises from ``1 / rounds`` to 1, for what a method makes stronger from round to round.
        model: The attached model.
        task: The kind of problem.
        run: Its ``holdout`` judges; fewer than 20 samples cannot, and then two rounds are run unjudged.
        steps: Optimiser steps of all rounds together.
        rounds: Largest number of rounds.
        attenuation: Factor of each round, in (0, 1].
        max_clean_drop: Budget in percentage points.

    Raises:
        BadOption: A value lies outside its range.
    """
    _check(rounds, attenuation, max_clean_drop)
    each = math.ceil(steps / rounds)
    holdout = run.holdout if run.holdout is not None and len(run.holdout) >= FEW else None
    if holdout is None and attenuation < 1 and rounds > 2:
        rounds = 2
        run.notice(
            f"fewer than {FEW} samples are held out, too few to judge the strength by, so {rounds} rounds were run "
            "whatever they cost."
        )
    given = None if holdout is None else right_answers(model, holdout, task)
    retries = 0
    for turn in range(1, rounds + 1):
        before = _copy(handle)
        while True:
            if attenuation < 1:
                handle.attenuate_(attenuation)
            tune(each, turn / rounds, f"round {turn} of {rounds}" if rounds > 1 else "")
            if holdout is None or given is None:
                break
            drop, error = paired_drop(given, right_answers(model, holdout, task))
            within = drop <= max_clean_drop + error
            run.log.append(
                {
                    "round": turn,
                    "attenuation": attenuation,
                    "drop": drop,
                    "standard_error": error,
                    "within": float(within),
                }
            )
            if within:
                break
            if retries < _RETRIES and attenuation < 1:
                retries += 1
                attenuation = math.sqrt(attenuation)
                _restore(handle, before)
                continue
            if turn > 1:
                _restore(handle, before)
            else:
                run.notice(
                    f"even the mildest round cost {drop:.1f} points on the holdout, more than the budget of "
                    f"{max_clean_drop:g}; it was kept all the same. More clean samples or steps may help."
                )
            return


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
