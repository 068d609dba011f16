"""FST: a new classifier that is pushed away from the old one drags the features along."""

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
from unbackdoor.defender.schedule import Schedule
from unbackdoor.errors import BadOption
from unbackdoor.network.features import classifier
from unbackdoor.network.gradients import check_graph
from unbackdoor.network.norms import check_norm_mode, train_norms
from unbackdoor.task import Batch, Task

__all__ = ["FST", "Head", "shift_penalty"]


def shift_penalty(weight: Tensor, given: Tensor) -> Tensor:
    r"""``<w, w_0> = sum_ij w_ij (w_0)_ij``, a scalar: the second term of Eq. (1) of FST."""
    return (weight * given).sum()


class Head:
    """The classifier with its given weight ``w_0``, whose norm it keeps."""

    def __init__(self, layer: nn.Module) -> None:
        """Remember ``w_0`` of a layer with a ``weight``, and perhaps a ``bias``."""
        self.weight, self.bias = layer.get_parameter("weight"), layer._parameters.get("bias")
        self.given = self.weight.detach().clone()
        self.norm = self.given.norm()

    @torch.no_grad()
    def renew_(self, generator: torch.Generator) -> None:
        """Draw weight and bias from ``U(-1 / sqrt(d), 1 / sqrt(d))`` for ``d`` inputs, and give the weight its norm."""
        bound = 1 / math.sqrt(max(1, self.weight[0].numel()))
        for value in (self.weight, self.bias):
            if value is not None and value.requires_grad:
                noise = torch.rand(value.shape, generator=generator, dtype=torch.float32, device=generator.device)
                value.copy_(bound * (2 * noise - 1))
        self.project_()

    @torch.no_grad()
    def project_(self) -> None:
        """``||w|| = ||w_0||``: the constraint of Eq. (1)."""
        self.weight.mul_(self.norm / self.weight.norm().clamp(min=torch.finfo(self.weight.dtype).tiny))


@dataclass(frozen=True, kw_only=True)
class FST(Purifier):
    """FST (Min et al., NeurIPS 2023): fine-tune from a new classifier that is kept away from the given one."""

    name: ClassVar[str] = "fst"
    needs: ClassVar[tuple[str, ...]] = ("classes", "classifier")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "steps": 80,
            "lr": 0.01,
            "weight_decay": 0.0,
            "clip": None,
            "schedule": "cosine",
            "shift": 0.2,
            "bn": "update",
        },
    }

    steps: int = option(200, "optimiser steps")
    batch_size: int = option(128, "samples a step")
    lr: float = option(0.05, "peak learning rate of SGD")
    momentum: float = option(0.9, "momentum of SGD")
    weight_decay: float = option(0.0, "L2 penalty of SGD")
    clip: float | None = option(1.0, "largest norm of the whole gradient; None for no limit")
    schedule: Schedule = option("one-cycle", "learning rate over the run: one-cycle, cosine, step or constant")
    shift: float = option(0.2, "alpha: weight of the inner product of new and given classifier")
    renew: bool = option(True, "begin with a new classifier; off begins with the given one")
    bn: Literal["update", "frozen"] = option("frozen", "BatchNorm in train mode, or with its stored statistics")
    mixup: float = option(0.0, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        check_norm_mode(self.bn)
        if not 0 <= self.shift < math.inf:
            raise BadOption(f"shift is {self.shift}; the weight of the penalty must be a number of at least 0.")

    @property
    def updates_buffers(self) -> bool:
        """BatchNorm's running statistics move with ``bn="update"``."""
        return self.bn == "update"

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        name, layer = classifier(model, partial(task.forward, model, clean.samples[slice(0, 2)].inputs))
        run.notice(f"{name} was taken for the classifier, made anew and kept away from the given one.")
        head = Head(layer)
        if self.renew:
            head.renew_(run.generator)
        train_norms(model, self.updates_buffers)

        def objective(step: int, batch: Batch) -> Tensor:
            """Eq. (1) of FST."""
            fresh = task.augment(batch, run.generator, mix=self.mixup)
            loss = check_graph(task.loss(task.forward(model, fresh.inputs), fresh.targets))
            return loss + self.shift * shift_penalty(head.weight, head.given)

        finetune(
            [p for p in model.parameters() if p.requires_grad],
            objective,
            clean,
            run,
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            clip=self.clip,
            after_step=head.project_,
            message="shifting features",
        )
        train_norms(model, False)
