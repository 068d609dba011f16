"""NAD: fine-tune a teacher, then pull the attention maps of the given model towards its."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.fit import Fitted
from unbackdoor.defender.loss import frozen_copy, label_loss
from unbackdoor.defender.purifier import Run, option
from unbackdoor.defender.schedule import marks
from unbackdoor.errors import BadOption
from unbackdoor.network.features import Depth, attention, depths, recorded
from unbackdoor.network.norms import check_norm_mode, train_norms
from unbackdoor.network.signature import Kept
from unbackdoor.task import Batch, Task

__all__ = ["NAD", "Distillation"]


@dataclass(frozen=True)
class Distillation:
    r"""``L(f(x), y) + beta sum_l || A(F_l^S) - A(F_l^T) ||_2``, a mean over samples: Eq. (3), (4) of NAD.

    Attributes:
        model: The student.
        teacher: In eval mode: BatchNorm has its stored statistics, whatever the student's has.
        places: The depths ``l``.
        task: Gives the loss.
        run: Draws the augmentation.
        beta: Weight of each depth.
        power: ``p`` of the attention maps.
        mixup: Of `Task.augment`.
    """

    model: nn.Module
    teacher: nn.Module
    places: list[Depth]
    task: Task
    run: Run
    beta: float
    power: float
    mixup: float

    def __call__(self, step: int, batch: Batch) -> Tensor:
        """The loss on a batch as drawn from the clean set, a scalar."""
        fresh = self.task.augment(batch, self.run.generator, mix=self.mixup)
        with torch.no_grad(), recorded(self.teacher, self.places) as taught:
            self.task.forward(self.teacher, fresh.inputs)
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


_PUBLISHED = {
    "teacher_epochs": 10,
    "epochs": 20,
    "batch_size": 64,
    "lr": 0.1,
    "weight_decay": 1e-4,
    "schedule": "milestones",
    "milestones": "2",
    "clip": None,
    "bn": "update",
    "beta": 1000.0,
}


@dataclass(frozen=True, kw_only=True)
class NAD(Fitted):
    """NAD (Li et al., ICLR 2021): a fine-tuned copy teaches the given model where to look."""

    name: ClassVar[str] = "nad"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": _PUBLISHED}

    teacher_steps: int = option(200, "optimiser steps that make the teacher out of a copy; teacher_epochs overrides")
    teacher_epochs: int | None = option(None, "passes over the samples that make the teacher, instead of teacher_steps")
    batch_size: int = option(64, "samples a step")
    lr: float = option(0.1, "peak learning rate, of teacher and student")
    weight_decay: float = option(5e-4, "L2 penalty inside the optimiser")
    clip: float | None = option(1.0, "largest norm of the whole gradient; None for no bound")
    milestones: str = option("", "epochs after which lr falls by gamma, for schedule milestones: spaces between")
    beta: float = option(5.0, "weight of the distance of attention maps at each depth")
    power: float = option(2.0, "p of the attention map")
    points: int = option(3, "number of depths at which attention is compared")
    bn: Literal["update", "frozen"] = option("frozen", "BatchNorm in train mode, or with its stored statistics")
    mixup: float = option(0.0, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")

    @classmethod
    def make(cls, preset: str | None = None, **options: Any) -> Self:
        """As `Fitted.make`; ``teacher_steps`` that are given stand against the ``teacher_epochs`` of a preset."""
        return super().make(preset, **({"teacher_epochs": None} if "teacher_steps" in options else {}) | options)

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        check_norm_mode(self.bn)
        marks(self.milestones)
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
        given = Kept.of(model)
        tuned = [p for p in model.parameters() if p.requires_grad]
        at = marks(self.milestones)

        def plain(step: int, batch: Batch) -> Tensor:
            return label_loss(model, task, task.augment(batch, run.generator, mix=self.mixup))

        first = replace(self, steps=self.teacher_steps, epochs=self.teacher_epochs)
        train_norms(model, self.updates_buffers)
        first.fit(tuned, plain, clean, run, milestones=at, message="fine-tuning the teacher")
        teacher = frozen_copy(model)
        given.restore()
        objective = Distillation(model, teacher, places, task, run, self.beta, self.power, self.mixup)
        self.fit(tuned, objective, clean, run, milestones=at, message="distilling attention")
        train_norms(model, False)
