"""Vanilla fine-tuning: the baseline of both papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbackdoor.data import CleanSet
from unbackdoor.defender.disturbance import disturbed_loss
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.schedule import Schedule
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch, Task

__all__ = ["FT"]


@dataclass(frozen=True, kw_only=True)
class FT(Purifier):
    """Fine-tune all trainable weights on the clean samples; the control beside every defence."""

    name: ClassVar[str] = "ft"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"steps": 500, "schedule": "constant", "weight_decay": 0.0, "mixup": 0.0, "disturb": False},
    }

    steps: int = option(200, "optimiser steps")
    batch_size: int = option(128, "samples a step")
    lr: float = option(0.01, "peak learning rate of SGD")
    momentum: float = option(0.9, "momentum of SGD")
    weight_decay: float = option(5e-4, "L2 penalty of SGD")
    schedule: Schedule = option("one-cycle", "learning rate over the run: one-cycle, cosine, step or constant")
    bn: Literal["update", "frozen"] = option("update", "BatchNorm in train mode, or with its stored statistics")
    mixup: float = option(0.0, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")
    disturb: bool = option(True, "whether the model is tuned on disturbed inputs, where the task knows disturbances")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        if self.bn not in ("update", "frozen"):
            raise BadOption(f"no BatchNorm mode {self.bn!r}. Known: update, frozen.")

    @property
    def updates_buffers(self) -> bool:
        """BatchNorm's running statistics move with ``bn="update"``."""
        return self.bn == "update"

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        disturber = run.disturber(task, model, clean, self.batch_size) if self.disturb else None
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.train(self.updates_buffers)

        def objective(step: int, batch: Batch) -> Tensor:
            """Eq. (1) of NFT, Eq. (4) of FIP, on augmented samples."""
            fresh = task.augment(batch, run.generator, mix=self.mixup)
            return disturbed_loss(model, task, fresh.inputs, [(1.0, fresh.targets)], disturber)

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
            message="fine-tuning",
        )
        model.eval()
