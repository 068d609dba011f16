"""Fisher information guided purification in the space of all weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from torch import nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.clean_loss import CleanLoss
from unbackdoor.defender.curvature.objective import FisherObjective
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.reparam import FullWeights
from unbackdoor.defender.schedule import Schedule
from unbackdoor.errors import BadOption
from unbackdoor.task import Task

__all__ = ["FIP"]


@dataclass(frozen=True, kw_only=True)
class FIP(Purifier):
    """FIP (Karim et al., CCS 2024): fine-tune all weights towards a smooth minimum of the loss."""

    name: ClassVar[str] = "fip"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "steps": 200,
            "lr": 0.01,
            "schedule": "step",
            "clip": None,
            "mixup": 0.0,
            "distil": 0.0,
            "disturb": False,
            "trace_weight": 1e-3,
            "trace_every": 10,
            "trace_samples": 128,
            "retain_weight": 5.0,
        },
        "paper-adam": {
            "steps": 10_000,
            "lr": 1e-4,
            "optimiser": "adam",
            "weight_decay": 2e-4,
            "schedule": "constant",
            "clip": None,
            "mixup": 0.0,
            "disturb": False,
            "trace_weight": 1e-3,
            "trace_every": 10,
            "trace_samples": 128,
            "retain_weight": 5.0,
        },
    }

    steps: int = option(200, "optimiser steps")
    batch_size: int = option(128, "samples a step")
    lr: float = option(0.01, "peak learning rate on the weights")
    optimiser: Literal["sgd", "adam"] = option("sgd", "sgd or adam")
    momentum: float = option(0.9, "momentum of SGD, first-moment decay of Adam")
    weight_decay: float = option(0.0, "L2 penalty inside the optimiser")
    schedule: Schedule = option("one-cycle", "learning rate over the run: one-cycle, cosine, step or constant")
    clip: float | None = option(1.0, "largest norm of the whole gradient")
    mixup: float = option(1.0, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")
    distil: float = option(0.0, "share of the loss that asks for the given model's answers instead of labels")
    disturb: bool = option(True, "whether the model is tuned on disturbed inputs, where the task knows disturbances")
    reuse: int = option(8, "times that a mixture and the given model's answer to it are drawn; 1 for once")
    trace_weight: float = option(1e-3, "eta_F: weight of Tr(F)")
    trace_every: int = option(10, "Tr(F) enters every so many steps")
    trace_samples: int = option(32, "samples of a batch that estimate Tr(F)")
    retain_weight: float = option(0.0, "eta_r: weight of the Fisher-weighted distance to the given model")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        if self.trace_every < 1 or self.trace_samples < 1:
            raise BadOption(
                f"trace_every is {self.trace_every}, trace_samples {self.trace_samples}; both must be at least 1."
            )

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        objective = FisherObjective(
            trace_weight=self.trace_weight,
            trace_every=self.trace_every,
            trace_samples=self.trace_samples,
            retain_weight=self.retain_weight,
        )
        clean_loss = CleanLoss.of(
            model,
            task,
            clean,
            run,
            distil=self.distil,
            mixup=self.mixup,
            batch_size=self.batch_size,
            reuse=self.reuse,
            disturb=self.disturb,
            weights_move=True,
        )
        samples, loss = clean_loss.prepare(self.steps, self.batch_size, self.mixup)
        with FullWeights(model) as weights:
            anchor = objective.prepare(weights, model, task, clean, run)
            finetune(
                list(weights.parameters().values()),
                partial(objective, loss=loss, anchor=anchor),
                samples,
                run,
                steps=self.steps,
                batch_size=self.batch_size,
                lr=self.lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                schedule=self.schedule,
                optimiser=self.optimiser,
                clip=self.clip,
                message="smoothing the loss",
            )
            weights.fold_()
