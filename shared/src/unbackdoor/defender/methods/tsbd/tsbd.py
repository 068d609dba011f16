"""TSBD: zero the weights that move most when clean samples are unlearned, then fine-tune with few gradients' norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.curvature.sharpness import SharpnessAware
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.reparam import FullWeights
from unbackdoor.defender.reparam.matrices import Matrix, matrices
from unbackdoor.defender.schedule import Schedule
from unbackdoor.defender.tolerance import AccuracyTolerance, last_within, right_answers
from unbackdoor.errors import BadOption, NothingTrainable
from unbackdoor.network.features import last_layer
from unbackdoor.task import Batch, Task

__all__ = ["TSBD", "neuron_changes", "zero_masks"]


def neuron_changes(changes: list[Tensor]) -> Tensor:
    r"""``NWC_k = sum_i |w'_ki - w_ki|`` of every neuron of every matrix, in one row: Eq. (3) of TSBD.

    Args:
        changes: ``|w' - w|`` of each matrix, shape ``(groups, rows, columns)``.
    """
    return torch.cat([change.sum(2).flatten() for change in changes])


def zero_masks(changes: list[Tensor], neurons: float, weights: float) -> list[Tensor]:
    """Which weights are set to zero: of the ``neurons`` share that changed most, the ``weights`` share that did.

    Args:
        changes: See `neuron_changes`.
        neurons: ``n``, over all neurons of all matrices.
        weights: ``m``, over all weights of the chosen neurons.

    Returns:
        For each matrix a bool tensor of its shape; exactly ``round(m N)`` are set of the ``N`` weights of the neurons.
    """
    ranks = neuron_changes(changes).argsort(descending=True, stable=True)
    chosen = torch.zeros(len(ranks), dtype=torch.bool, device=ranks.device)
    chosen[ranks[: max(1, round(neurons * len(ranks)))]] = True
    rows = chosen.split([change.shape[0] * change.shape[1] for change in changes])
    candidates = [mine.view(*change.shape[:2], 1).expand_as(change) for mine, change in zip(rows, changes, strict=True)]
    flat = torch.cat([c.flatten() for c in candidates])
    values = torch.cat([change.flatten() for change in changes]).masked_fill(~flat, -1.0)
    order = values.argsort(descending=True, stable=True)
    zeroed = torch.zeros_like(flat)
    zeroed[order[: round(weights * int(flat.sum()))]] = True
    parts = zeroed.split([change.numel() for change in changes])
    return [part.view_as(change) for part, change in zip(parts, changes, strict=True)]


@dataclass(frozen=True, kw_only=True)
class TSBD(Purifier):
    """TSBD (Lin et al., NeurIPS 2024): unlearn clean samples to find backdoor neurons, zero them, recover."""

    name: ClassVar[str] = "tsbd"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "steps": 400,
            "lr": 0.01,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "clip": None,
            "schedule": "constant",
            "neurons": 0.15,
            "weights": 0.7,
            "radius": 0.05,
            "share": 0.7,
            "rounds": 1,
            "holdout": 0.0,
        },
    }

    steps: int = option(300, "optimiser steps of the fine-tuning, of all rounds together")
    batch_size: int = option(128, "samples a step")
    lr: float = option(0.05, "peak learning rate of the fine-tuning")
    momentum: float = option(0.9, "momentum of SGD")
    weight_decay: float = option(5e-4, "L2 penalty of the fine-tuning")
    clip: float | None = option(1.0, "largest norm of the whole gradient; None for no limit")
    schedule: Schedule = option("one-cycle", "learning rate over a round: one-cycle, cosine, step or constant")
    unlearn_steps: int = option(200, "steps of gradient ascent on clean samples at most")
    unlearn_lr: float = option(0.01, "learning rate of the ascent")
    unlearned: float = option(0.2, "the ascent stops at this share of the given model's right answers")
    neurons: float = option(0.3, "n: largest share of neurons that lose weights; rounds rise to it")
    weights: float = option(0.7, "m: share of their weights that is set to zero")
    radius: float = option(0.05, "r: length of the ascent step of the gradient-norm penalty")
    share: float = option(0.7, "alpha: share of the gradient after that step")
    rounds: int = option(3, "shares of neurons that are tried; the largest within the tolerance stands")
    max_clean_drop: float = option(3.0, "points of clean accuracy on the holdout that it may cost")
    mixup: float = option(0.0, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        for name in ("neurons", "weights", "unlearned"):
            if not 0 < getattr(self, name) <= 1:
                raise BadOption(f"{name} is {getattr(self, name)}; the share must lie in (0, 1].")
        if self.unlearn_steps < 1 or self.rounds < 1 or not 0 < self.unlearn_lr < math.inf:
            raise BadOption(
                f"unlearn_steps is {self.unlearn_steps}, rounds {self.rounds}, unlearn_lr {self.unlearn_lr}; "
                "the first two must be at least 1, the last a positive number."
            )

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        _, head = last_layer(model, partial(task.forward, model, clean.samples[slice(0, 2)].inputs))
        sites = matrices(model, head.get_parameter("weight"))
        if not sites:
            raise NothingTrainable(
                f"{type(model).__name__} has no layer with neurons and requires_grad=True before its classifier; use a "
                "method for all weights, such as ft-sam."
            )
        weights = FullWeights(model)
        tuned = list(weights.parameters().values())
        given = [value.detach().clone() for value in tuned]
        tolerance = AccuracyTolerance.of(model, task, clean, run, self.max_clean_drop) if self.rounds > 1 else None
        changes = self._changes(model, sites, weights, clean, task, run)
        objective = SharpnessAware(model, weights, task, run, self.radius, mixup=self.mixup, share=self.share)

        def advance(turn: int) -> None:
            masks = zero_masks(changes, self.neurons * turn / self.rounds, self.weights)
            with torch.no_grad():
                for value, kept in zip(tuned, given, strict=True):
                    value.copy_(kept)
                for site, mask in zip(sites, masks, strict=True):
                    matrix = site.layout.to_matrix(site.weight).masked_fill(mask, 0.0)
                    site.weight.copy_(site.layout.from_matrix(matrix, site.weight))
            finetune(
                tuned,
                objective,
                clean,
                run,
                steps=math.ceil(self.steps / self.rounds),
                batch_size=self.batch_size,
                lr=self.lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                schedule=self.schedule,
                clip=self.clip,
                message=f"recovering without {100 * self.neurons * turn / self.rounds:.0f} % of the neurons",
            )

        if tolerance is None:
            advance(1)
        else:
            last_within(self.rounds, advance, weights.parameters, tolerance, model)

    def _changes(
        self, model: nn.Module, sites: list[Matrix], weights: FullWeights, clean: CleanSet, task: Task, run: Run
    ) -> list[Tensor]:
        """``|w' - w|`` of every matrix after the unlearning of clean samples; the weights are as given again."""
        before = [site.layout.to_matrix(site.weight).detach().clone() for site in sites]
        goal = self.unlearned * float(right_answers(model, clean, task).double().mean())
        classes = task.strata(clean.samples.targets)
        if classes is not None:  # an ascent that ends in one class for all inputs is right on the samples of that class
            goal = max(goal, 1.05 * float(classes.unique(return_counts=True)[1].max()) / len(clean))

        def objective(step: int, batch: Batch) -> Tensor:
            """``-L``, Eq. (2) of TSBD."""
            fresh = task.augment(batch, run.generator, mix=0)
            return -task.loss(task.forward(model, fresh.inputs), fresh.targets)

        def known() -> bool:
            return float(right_answers(model, clean, task).double().mean()) > goal

        each, done = min(10, self.unlearn_steps), 0
        with weights:  # on leaving, the given weights come back
            while done < self.unlearn_steps and known():
                finetune(
                    list(weights.parameters().values()),
                    objective,
                    clean,
                    run,
                    steps=min(each, self.unlearn_steps - done),
                    batch_size=self.batch_size,
                    lr=self.unlearn_lr,
                    momentum=self.momentum,
                    schedule="constant",
                    clip=1.0,
                    message="unlearning clean samples",
                )
                done += each
            if known():
                run.notice(f"clean samples were not unlearned within {self.unlearn_steps} steps; raise unlearn_lr.")
            after = [site.layout.to_matrix(site.weight).detach().clone() for site in sites]
        return [(new - old).abs() for new, old in zip(after, before, strict=True)]
