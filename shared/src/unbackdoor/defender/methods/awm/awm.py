"""Adversarial weight masking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.input_space import InputSpace
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.reparam import WeightMask
from unbackdoor.defender.schedule import Schedule
from unbackdoor.defender.tolerance import AccuracyTolerance, check_drop, last_within
from unbackdoor.errors import BadOption
from unbackdoor.network.gradients import slopes
from unbackdoor.task import Batch, Task

__all__ = ["AWM", "within_norm"]


def within_norm(delta: Tensor, norm: float) -> Tensor:
    """``delta`` scaled down so that ``||delta||_1 <= norm``; unchanged where it is smaller already."""
    return delta * (norm / delta.abs().sum().clamp(min=torch.finfo(delta.dtype).tiny)).clamp(max=1.0)


@dataclass(frozen=True, kw_only=True)
class AWM(Purifier):
    """AWM (Chai and Chen, NeurIPS 2022): soft masks on single weights against one perturbation of all inputs."""

    name: ClassVar[str] = "awm"
    needs: ClassVar[tuple[str, ...]] = ("classes", "perturbable")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "steps": 300,
            "search_steps": 15,
            "batch_size": 128,
            "lr": 0.01,
            "rounds": 20,
            "alpha": 0.9,
            "trigger_norm": 0.3255,
            "holdout": 0.0,
            "max_clean_drop": 100.0,
        },
    }

    steps: int = option(200, "optimiser steps of the masks, of all rounds together")
    batch_size: int = option(64, "samples a step, of masks and search")
    lr: float = option(0.03, "learning rate of Adam on the masks in the first round")
    decay: float = option(0.9, "factor of the learning rate from round to round")
    momentum: float = option(0.9, "first-moment decay of Adam")
    schedule: Schedule = option("constant", "learning rate within a round: one-cycle, cosine, step or constant")
    rounds: int = option(20, "how often the perturbation is searched for anew")
    search_steps: int = option(15, "steps of a search")
    search_lr: float = option(10.0, "learning rate of SGD on the perturbation")
    alpha: float = option(0.5, "share of the loss without perturbation")
    sparsity: float = option(1e-8, "gamma: weight of the masks' L1 norm")
    trigger_norm: float = option(0.05, "tau: largest mean size of the perturbation, in units of the inputs' range")
    max_clean_drop: float = option(3.0, "points of clean accuracy on the holdout that the last round kept may cost")
    mixup: float = option(0.0, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")
    skip: str = option("", "weights to leave alone: patterns of their names, with spaces between")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        if not 0 <= self.alpha <= 1 or self.sparsity < 0 or not self.trigger_norm > 0:
            raise BadOption(
                f"alpha is {self.alpha}, sparsity {self.sparsity}, trigger_norm {self.trigger_norm}; allowed are alpha "
                "in [0, 1], sparsity of at least 0 and trigger_norm above 0."
            )
        if self.rounds < 1 or self.search_steps < 1 or not self.search_lr > 0 or not 0 < self.decay <= 1:
            raise BadOption(
                f"rounds is {self.rounds}, search_steps {self.search_steps}, search_lr {self.search_lr}, decay "
                f"{self.decay}; allowed are at least 1, 1, above 0 and (0, 1]."
            )
        check_drop(self.max_clean_drop)

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        tolerance = AccuracyTolerance.of(model, task, clean, run, self.max_clean_drop)
        space = InputSpace.of(task, clean)
        probe = partial(task.forward, model, clean.samples[slice(0, 2)].inputs)
        mask = WeightMask(model, probe, skip=self.skip.split(), head=False)
        run.notices += mask.notices
        rounds = min(self.rounds, self.steps)

        def advance(turn: int) -> None:
            delta = self._search(model, space, clean, task, run)

            def objective(step: int, batch: Batch) -> Iterator[Tensor]:
                """The objective of AWM: ``alpha L(x) + (1 - alpha) L(x + delta) + gamma ||m||_1``."""
                fresh = task.augment(batch, run.generator, mix=self.mixup)
                if self.alpha > 0:
                    yield self.alpha * task.loss(task.forward(model, fresh.inputs), fresh.targets)
                if self.alpha < 1:
                    moved = task.forward(model, space.add(fresh.inputs, delta))
                    yield (1 - self.alpha) * task.loss(moved, fresh.targets)
                yield self.sparsity * mask.size()

            finetune(
                list(mask.parameters().values()),
                objective,
                clean,
                run,
                steps=self.steps * turn // rounds - self.steps * (turn - 1) // rounds,
                batch_size=self.batch_size,
                lr=self.lr * self.decay ** (turn - 1),
                momentum=self.momentum,
                schedule=self.schedule,
                optimiser="adam",
                after_step=mask.project_,
                message=f"masking weights, round {turn} of {rounds}",
            )

        with mask:
            last_within(rounds, advance, mask.parameters, tolerance, model)
            mask.fold_()

    def _search(self, model: nn.Module, space: InputSpace, clean: CleanSet, task: Task, run: Run) -> Tensor:
        """``argmax L(x + delta)`` over one ``delta`` for all inputs with ``||delta||_1 <= tau``.

        The loss is that of the labels. Shape ``(1, *one input)``; each step is followed by the projection.
        """
        norm = self.trigger_norm * (space.high - space.low) * space.zeros().numel()
        delta = space.zeros()
        batches = clean.batches(self.batch_size, run.generator)
        for _ in range(self.search_steps):
            fresh = task.augment(next(batches), run.generator, mix=0)
            leaf = delta.requires_grad_()
            loss = task.loss(task.forward(model, space.add(fresh.inputs, leaf)), fresh.targets)
            (slope,) = slopes(loss, [leaf], what="the inputs")
            assert slope is not None
            step = torch.where(torch.isfinite(slope).all(), self.search_lr * slope, torch.zeros_like(slope))
            delta = within_norm(leaf.detach() + step, norm)
        return delta.detach()
