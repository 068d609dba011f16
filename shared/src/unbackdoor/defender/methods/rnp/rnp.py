"""Reconstructive neuron pruning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.pruning import Course, MaskSite, neuron_mask, prune_below, prune_within
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.reparam import FullWeights, NeuronMask
from unbackdoor.defender.schedule import Schedule
from unbackdoor.defender.tolerance import AccuracyTolerance, check_drop, right_answers
from unbackdoor.errors import BadOption
from unbackdoor.network.norms import train_norms
from unbackdoor.task import Batch, Task

__all__ = ["RNP", "forgotten"]

_LEFT = 0.1


def forgotten(given: float, chance: float) -> float:
    """The accuracy at which unlearning stops: chance and a tenth of what the given model has above it.

    For ten classes and a given accuracy of 1 it is 0.19, where the paper has 0.2; unlike that it is above
    chance for any number of classes, so that unlearning neither goes on for ever nor stops before it began.

    Args:
        given: Accuracy of the given model on the clean samples, in [0, 1].
        chance: Share of the most frequent class; 0 where the task has no classes.
    """
    return min(chance, given) + _LEFT * max(given - chance, 0.0)


@dataclass(frozen=True, kw_only=True)
class RNP(Purifier):
    """RNP (Li et al., ICML 2023): unlearn clean data, recover by masks, prune the neurons that recovery left out."""

    name: ClassVar[str] = "rnp"
    discrete: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "steps": 80,
            "batch_size": 128,
            "lr": 0.04,
            "schedule": "constant",
            "unlearn_steps": 80,
            "stop": 0.2,
            "clip": 20.0,
            "site": "norm",
        },
    }

    steps: int = option(200, "optimiser steps of the masks (recovery)")
    batch_size: int = option(64, "samples a step")
    lr: float = option(0.005, "peak learning rate of SGD on the masks")
    momentum: float = option(0.9, "momentum of SGD, in both stages")
    schedule: Schedule = option("constant", "learning rate of the recovery: one-cycle, cosine, step or constant")
    unlearn_steps: int = option(200, "steps of gradient ascent at most")
    unlearn_lr: float = option(0.01, "learning rate of the ascent")
    unlearn_decay: float = option(5e-4, "L2 penalty of the ascent")
    clip: float | None = option(1.0, "largest norm of the ascent's gradient")
    stop: float | None = option(None, "clean accuracy at which unlearning stops; none: a tenth above chance is left")
    site: MaskSite = option("auto", "masks on weight, or on BatchNorm's scale (norm); auto: norm if there is any")
    threshold: float | None = option(None, "masks up to this are pruned; none: as many as the tolerance allows")
    max_clean_drop: float = option(3.0, "points of clean accuracy on the holdout that pruning may cost")
    mixup: float = option(0.0, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")
    skip: str = option("", "weights to leave alone: patterns of their names, with spaces between")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        if self.site not in get_args(MaskSite):
            raise BadOption(f"no mask site {self.site!r}. Known: auto, weight, norm.")
        if self.unlearn_steps < 1 or not 0 < self.unlearn_lr < math.inf:
            raise BadOption(
                f"unlearn_steps is {self.unlearn_steps}, unlearn_lr {self.unlearn_lr}; both must be above 0."
            )
        if self.stop is not None and not 0 <= self.stop < 1:
            raise BadOption(f"stop is {self.stop}; the accuracy at which unlearning stops must lie in [0, 1).")
        check_drop(self.max_clean_drop)

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        tolerance = AccuracyTolerance.of(model, task, clean, run, self.max_clean_drop)
        probe = partial(task.forward, model, clean.samples[slice(0, 2)].inputs)
        skip = self.skip.split()
        with FullWeights(model, skip=skip) as whole:  # on leaving, the given weights come back
            self._unlearn(model, whole, clean, task, run)
            scores = self._recover(model, neuron_mask(model, probe, self.site, skip), clean, task, run)
        mask = neuron_mask(model, probe, self.site, skip)
        run.notices += mask.notices
        with mask:
            train_norms(model, False)
            if self.threshold is None:
                prune_within(mask, scores, tolerance, model, below=1.0)
            else:
                prune_below(mask, scores, self.threshold, tolerance)
            mask.fold_()

    def _unlearn(self, model: nn.Module, whole: FullWeights, clean: CleanSet, task: Task, run: Run) -> None:
        """Unlearning: ``max L(f(x), y)`` over all weights, until clean samples are forgotten."""
        stop = self.stop
        if stop is None:
            given = float(right_answers(model, clean, task).double().mean())
            stop = forgotten(given, _chance(task.strata(clean.samples.targets)))

        def ascent(step: int, batch: Batch) -> Tensor:
            fresh = task.augment(batch, run.generator, mix=self.mixup)
            return -task.loss(task.forward(model, fresh.inputs), fresh.targets)

        left = 1.0

        def done() -> bool:
            nonlocal left
            left = float(right_answers(model, clean, task).double().mean())
            return left <= stop

        finetune(
            list(whole.parameters().values()),
            ascent,
            clean,
            run,
            steps=self.unlearn_steps,
            batch_size=self.batch_size,
            lr=self.unlearn_lr,
            momentum=self.momentum,
            weight_decay=self.unlearn_decay,
            schedule="constant",
            clip=self.clip,
            until=done,
            message="unlearning clean samples",
        )
        if left > stop:
            run.notice(
                f"unlearning ended after {self.unlearn_steps} steps with {left:.0%} of the clean samples still right, "
                f"not {stop:.0%}: the recovery says less then. More unlearn_steps or a higher unlearn_lr help."
            )

    def _recover(self, model: nn.Module, mask: NeuronMask, clean: CleanSet, task: Task, run: Run) -> dict[str, Tensor]:
        """Recovery: ``min L(f(m W, x), y)`` over masks of the unlearned weights; returns scores."""

        def objective(step: int, batch: Batch) -> Tensor:
            fresh = task.augment(batch, run.generator, mix=self.mixup)
            return task.loss(task.forward(model, fresh.inputs), fresh.targets)

        course = Course(mask)
        with mask:
            train_norms(model, False)
            finetune(
                list(mask.parameters().values()),
                objective,
                clean,
                run,
                steps=self.steps,
                batch_size=self.batch_size,
                lr=self.lr,
                momentum=self.momentum,
                schedule=self.schedule,
                after_step=course,
                message="recovering by masks",
            )
            return course.scores()


def _chance(strata: Tensor | None) -> float:
    if strata is None:
        return 0.0
    return float(torch.unique(strata, return_counts=True)[1].max()) / len(strata)
