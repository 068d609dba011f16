"""MCR: a curve of low clean loss between the given model and a fine-tuned copy, and a point of it far from both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.reparam import FullWeights
from unbackdoor.defender.schedule import Schedule
from unbackdoor.defender.tolerance import AccuracyTolerance, strongest_within
from unbackdoor.errors import BadOption
from unbackdoor.network.norms import reestimate_norms, train_norms, untracked
from unbackdoor.task import Batch, Task

__all__ = ["MCR", "Curve", "bezier"]


def bezier(first: Tensor, bend: Tensor, last: Tensor, t: float) -> Tensor:
    r"""``phi(t) = (1 - t)^2 theta_1 + 2 t (1 - t) theta + t^2 theta_2``: the quadratic curve of Eq. (2) of MCR."""
    return (1 - t) ** 2 * first + 2 * t * (1 - t) * bend + t**2 * last


@dataclass(frozen=True)
class Curve:
    """The curve's three points by parameter name; ``bend`` alone is tuned."""

    first: Mapping[str, Tensor]
    bend: Mapping[str, Tensor]
    last: Mapping[str, Tensor]

    def at(self, t: float) -> dict[str, Tensor]:
        """``phi(t)``."""
        return {name: bezier(self.first[name], self.bend[name], self.last[name], t) for name in self.bend}


@dataclass(frozen=True, kw_only=True)
class MCR(Purifier):
    """MCR (Zhao et al., ICLR 2020): the ends of the path know the backdoor, its middle was made by clean samples."""

    name: ClassVar[str] = "mcr"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "steps": 400,
            "end_steps": 400,
            "batch_size": 128,
            "lr": 0.01,
            "weight_decay": 1e-4,
            "clip": None,
            "schedule": "constant",
        },
    }

    steps: int = option(300, "optimiser steps of the curve")
    end_steps: int = option(200, "optimiser steps that make the other end out of a copy")
    batch_size: int = option(128, "samples a step")
    lr: float = option(0.05, "peak learning rate of SGD, of end and curve")
    momentum: float = option(0.9, "momentum of SGD")
    weight_decay: float = option(5e-4, "L2 penalty of SGD")
    clip: float | None = option(1.0, "largest norm of the whole gradient; None for no limit")
    schedule: Schedule = option("one-cycle", "learning rate over each part: one-cycle, cosine, step or constant")
    points: int = option(9, "places on the curve that are tried, evenly between its ends")
    passes: int = option(4, "passes over the clean samples that estimate BatchNorm's statistics at each place")
    max_clean_drop: float = option(3.0, "points of clean accuracy on the holdout that the choice may cost")
    mixup: float = option(0.0, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        for name in ("end_steps", "points", "passes"):
            if getattr(self, name) < 1:
                raise BadOption(f"{name} is {getattr(self, name)}; it must be at least 1.")

    @property
    def updates_buffers(self) -> bool:
        """Each place on the curve has BatchNorm statistics of its own."""
        return True

    def places(self) -> list[float]:
        """Values of ``t``, the mildest first: the nearer to the middle, the farther from both ends, the stronger."""
        inner = [(i + 1) / (self.points + 1) for i in range(self.points)]
        return sorted(inner, key=lambda t: (-abs(t - 0.5), t))

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        tolerance = AccuracyTolerance.of(model, task, clean, run, self.max_clean_drop)
        weights = FullWeights(model)
        curve = self._curve(model, weights, clean, task, run)
        seed = int(torch.randint(2**31, (1,), generator=run.generator, device=run.generator.device))

        def apply(t: float) -> None:
            with torch.no_grad():
                for name, value in curve.at(t).items():
                    weights.parameters()[name].copy_(value)
            same = torch.Generator().manual_seed(seed)  # a place has the same statistics whenever it is looked at
            reestimate_norms(model, task, clean, same, batch_size=self.batch_size, passes=self.passes)

        chosen = strongest_within(self.places(), apply, tolerance, model, what="place on the curve", required=True)
        run.notice(f"the model at t = {chosen:.2f} of the curve was taken (0: given, 1: fine-tuned).")

    def _curve(self, model: nn.Module, weights: FullWeights, clean: CleanSet, task: Task, run: Run) -> Curve:
        """Fine-tune the other end, then the bend; the model ends up with the end's weights."""
        first = {name: value.detach().clone() for name, value in weights.parameters().items()}
        fit = partial(
            finetune,
            clean=clean,
            run=run,
            batch_size=self.batch_size,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            clip=self.clip,
        )

        def loss(batch: Batch) -> Tensor:
            fresh = task.augment(batch, run.generator, mix=self.mixup)
            return task.loss(task.forward(model, fresh.inputs), fresh.targets)

        fit(
            list(weights.parameters().values()),
            lambda step, batch: loss(batch),
            steps=self.end_steps,
            message="fine-tuning the other end",
        )
        last = {name: value.detach().clone() for name, value in weights.parameters().items()}
        bend = {name: ((first[name] + last[name]) / 2).requires_grad_(True) for name in first}
        curve = Curve(first, bend, last)

        def on_curve(step: int, batch: Batch) -> Tensor:
            """``E_t L(phi(t))``, Eq. (3) of MCR, at one ``t ~ U(0, 1)`` a step, with the batch's own statistics."""
            t = float(torch.rand((), generator=run.generator, device=run.generator.device))
            with weights.substituted(curve.at(t)), untracked(model):
                return loss(batch)

        train_norms(model, len(clean) > 1)
        fit(list(bend.values()), on_curve, steps=self.steps, message="bending the curve")
        train_norms(model, False)
        return Curve(first, {name: value.detach() for name, value in bend.items()}, last)
