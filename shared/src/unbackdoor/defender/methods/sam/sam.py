"""Plain sharpness-aware fine-tuning: what NFT and FIP compare with under the name FT-SAM."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.curvature.sharpness import SharpnessAware
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.reparam import FullWeights
from unbackdoor.defender.schedule import Schedule
from unbackdoor.defender.tolerance import AccuracyTolerance, last_within
from unbackdoor.errors import BadOption, NonFinite
from unbackdoor.network.norms import check_norm_mode, train_norms
from unbackdoor.network.signature import all_tensors
from unbackdoor.task import Task

__all__ = ["SAM"]


@dataclass(frozen=True, kw_only=True)
class SAM(Purifier):
    """SAM (Foret et al., ICLR 2021) on the clean samples: descend by the gradient at the worst point nearby."""

    name: ClassVar[str] = "sam"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "steps": 400,
            "radius": 0.05,
            "lr": 0.01,
            "weight_decay": 1e-4,
            "schedule": "constant",
            "clip": None,
            "bn": "update",
            "rounds": 1,
            "holdout": 0.0,
            "mixup": 0.0,
        },
    }

    steps: int = option(250, "optimiser steps of all rounds together; each takes two forward and backward passes")
    batch_size: int = option(128, "samples a step")
    lr: float = option(0.01, "peak learning rate of SGD")
    momentum: float = option(0.9, "momentum of SGD")
    weight_decay: float = option(5e-4, "L2 penalty of SGD")
    clip: float | None = option(1.0, "largest norm of the whole gradient; None for no limit")
    schedule: Schedule = option("one-cycle", "learning rate over the run: one-cycle, cosine, step or constant")
    radius: float = option(0.5, "rho: length of the ascent step in weight space; 0 is plain fine-tuning")
    adaptive: bool = option(False, "measure the ascent in units of each weight's size")
    rounds: int = option(5, "rounds in which rho rises to `radius`; the last one within the tolerance stands")
    max_clean_drop: float = option(3.0, "points of clean accuracy on the holdout that the rounds may cost")
    bn: Literal["update", "frozen"] = option("frozen", "BatchNorm in train mode, or with its stored statistics")
    mixup: float = option(0.0, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        check_norm_mode(self.bn)
        if not 0 <= self.radius < float("inf"):
            raise BadOption(f"radius is {self.radius}; the length of the ascent step must be a number of at least 0.")

    @property
    def updates_buffers(self) -> bool:
        """BatchNorm's running statistics move with ``bn="update"``."""
        return self.bn == "update"

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        weights = FullWeights(model)
        tuned = list(weights.parameters().values())

        def advance(turn: int) -> None:
            radius = self.radius * turn / self.rounds
            before = [value.detach().clone() for value in tuned]
            try:
                self._descend(
                    tuned, SharpnessAware(model, weights, task, run, radius, self.adaptive, self.mixup), clean
                )
            except NonFinite:
                if turn == 1:
                    raise
                run.notice(f"with an ascent of {radius:g} the loss was not finite; what was before it came back.")
                with torch.no_grad():
                    for value, kept in zip(tuned, before, strict=True):
                        value.copy_(kept)
            finally:
                train_norms(model, False)

        if self.rounds == 1:
            advance(1)
        else:
            tolerance = AccuracyTolerance.of(model, task, clean, run, self.max_clean_drop)
            last_within(self.rounds, advance, lambda: dict(all_tensors(model)), tolerance, model)

    def _descend(self, tuned: list[Tensor], objective: SharpnessAware, clean: CleanSet) -> None:
        train_norms(objective.model, self.updates_buffers)
        finetune(
            tuned,
            objective,
            clean,
            objective.run,
            steps=math.ceil(self.steps / self.rounds),
            batch_size=self.batch_size,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            clip=self.clip,
            message=f"flattening the minimum within {objective.radius:g}",
        )
