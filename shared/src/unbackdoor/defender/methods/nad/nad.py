"""NAD: fine-tune a teacher, then pull the attention maps of the given model towards its."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.reparam import FullWeights
from unbackdoor.defender.schedule import Schedule
from unbackdoor.errors import BadOption
from unbackdoor.network.features import Depth, attention, depths, recorded
from unbackdoor.network.norms import check_norm_mode, train_norms, untracked
from unbackdoor.task import Batch, Task

__all__ = ["NAD", "Distillation"]


@dataclass(frozen=True)
class Distillation:
    r"""``L(f(x), y) + beta sum_l || A(F_l^S) - A(F_l^T) ||_2``, a mean over samples: Eq. (3), (4) of NAD.

    Attributes:
        model: The student.
        weights: Its parameters.
        teacher: The teacher's values of them.
        places: The depths ``l``.
        task: Gives the loss.
        run: Draws the augmentation.
        beta: Weight of each depth.
        power: ``p`` of the attention maps.
        mixup: Of `Task.augment`.
    """

    model: nn.Module
    weights: FullWeights
    teacher: Mapping[str, Tensor]
    places: list[Depth]
    task: Task
    run: Run
    beta: float
    power: float
    mixup: float

    def __call__(self, step: int, batch: Batch) -> Tensor:
        """The loss on a batch as drawn from the clean set, a scalar."""
        fresh = self.task.augment(batch, self.run.generator, mix=self.mixup)
        teaching = self.weights.substituted(self.teacher)
        with torch.no_grad(), teaching, untracked(self.model), recorded(self.model, self.places) as taught:
            self.task.forward(self.model, fresh.inputs)
        with recorded(self.model, self.places) as own:
            outputs = self.task.forward(self.model, fresh.inputs)
        loss = self.task.loss(outputs, fresh.targets)
        for place in self.places:
            wanted = attention(taught[place.module], place.channels, self.power)
            given = attention(own[place.module], place.channels, self.power)
            loss = loss + self.beta * distance(given, wanted)
        return loss


def distance(given: Tensor, wanted: Tensor) -> Tensor:
    """Mean over samples of ``||A_S - A_T||_2``; its gradient is 0, not NaN, where both agree. Shapes ``(batch, n)``."""
    tiny = torch.finfo(given.dtype).eps ** 2
    return ((given - wanted).square().sum(1) + tiny).sqrt().mean()


@dataclass(frozen=True, kw_only=True)
class NAD(Purifier):
    """NAD (Li et al., ICLR 2021): a fine-tuned copy teaches the given model where to look."""

    name: ClassVar[str] = "nad"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "teacher_steps": 390,
            "steps": 780,
            "batch_size": 64,
            "lr": 0.1,
            "weight_decay": 1e-4,
            "schedule": "step",
            "clip": None,
            "bn": "update",
            "beta": 1000.0,
        },
    }

    teacher_steps: int = option(200, "optimiser steps that make the teacher out of a copy")
    steps: int = option(200, "optimiser steps of the distillation")
    batch_size: int = option(64, "samples a step")
    lr: float = option(0.1, "peak learning rate of SGD, of teacher and student")
    momentum: float = option(0.9, "momentum of SGD")
    weight_decay: float = option(5e-4, "L2 penalty of SGD")
    clip: float | None = option(1.0, "largest norm of the whole gradient; None for no limit")
    schedule: Schedule = option("one-cycle", "learning rate over each part: one-cycle, cosine, step or constant")
    beta: float = option(5.0, "weight of the distance of attention maps at each depth")
    power: float = option(2.0, "p of the attention map")
    points: int = option(3, "number of depths at which attention is compared")
    bn: Literal["update", "frozen"] = option("frozen", "BatchNorm in train mode, or with its stored statistics")
    mixup: float = option(0.0, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        check_norm_mode(self.bn)
        if self.teacher_steps < 1 or self.points < 1:
            raise BadOption(f"teacher_steps is {self.teacher_steps}, points {self.points}; both must be at least 1.")
        if not 0 <= self.beta < math.inf or not 0 < self.power < math.inf:
            raise BadOption(f"beta is {self.beta}, power {self.power}; give numbers of at least 0, and above 0.")

    @property
    def updates_buffers(self) -> bool:
        """BatchNorm's running statistics move with ``bn="update"``."""
        return self.bn == "update"

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        probe = partial(task.forward, model, clean.samples[slice(0, 2)].inputs)
        places = depths(model, probe, self.points)
        run.notice(f"attention is compared after {', '.join(place.module for place in places)}.")
        weights = FullWeights(model)
        tuned = list(weights.parameters().values())
        given = [value.detach().clone() for value in tuned]
        statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}

        def plain(step: int, batch: Batch) -> Tensor:
            fresh = task.augment(batch, run.generator, mix=self.mixup)
            return task.loss(task.forward(model, fresh.inputs), fresh.targets)

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
        train_norms(model, self.updates_buffers)
        fit(tuned, plain, steps=self.teacher_steps, message="fine-tuning the teacher")
        teacher = {name: value.detach().clone() for name, value in weights.parameters().items()}
        with torch.no_grad():
            for value, kept in zip(tuned, given, strict=True):
                value.copy_(kept)
            for name, buffer in model.named_buffers():
                buffer.copy_(statistics[name])
        objective = Distillation(model, weights, teacher, places, task, run, self.beta, self.power, self.mixup)
        fit(tuned, objective, steps=self.steps, message="distilling attention")
        train_norms(model, False)
