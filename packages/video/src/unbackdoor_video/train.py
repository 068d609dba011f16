"""Training of victims and of clean models: device-resident clips, poison put on after the augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.training import PRECISIONS, Progress, TrainOptions, train_by_batches
from unbackdoor.builders import seeded
from unbackdoor.errors import BadOption
from unbackdoor.task import Task

__all__ = ["RECIPES", "Training", "train"]

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "fast": {"epochs": 40, "lr": 2e-3, "schedule": "one-cycle"},
    "paper": {"epochs": 30, "lr": 1e-4, "schedule": "constant"},
}
"""``fast``: one-cycle, for small networks from random weights. ``paper``: FIP A.3, on ImageNet weights."""


@dataclass(frozen=True, kw_only=True)
class Training(TrainOptions):
    """The options of `train`.

    Attributes:
        epochs: Passes over the data; None takes the recipe's.
        batch_size: Clips a step.
        lr: Peak learning rate of AdamW; None takes the recipe's.
        weight_decay: Of AdamW.
        clip: Largest norm of the gradient.
        recipe: One of `RECIPES`.
        precision: One of `unbackdoor.attacker.training.PRECISIONS`.
        samples: Train on so many, drawn once from the training part; None takes all.
    """

    epochs: int | None = None
    batch_size: int = 16
    lr: float | None = None
    weight_decay: float = 0.01
    clip: float = 1.0
    recipe: str = "fast"
    precision: str = "auto"
    samples: int | None = None

    def __post_init__(self) -> None:
        """Fill in what the recipe says and refuse values that are not allowed."""
        self.check_known(recipe=RECIPES, precision=PRECISIONS)
        for name in ("epochs", "lr"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, RECIPES[self.recipe][name])
        self.check_at_least(1, "epochs", "batch_size")
        if self.samples is not None and self.samples < 2:
            raise BadOption(f"samples is {self.samples}; give at least 2, or leave it out to train on all.")
        if not self.lr or not self.lr > 0 or not self.clip > 0 or self.weight_decay < 0:
            raise BadOption(
                f"lr is {self.lr}, clip {self.clip}, weight_decay {self.weight_decay}; lr and clip must be above 0, "
                "weight_decay at least 0."
            )


def train(
    model: nn.Module,
    data: Splits,
    task: Task,
    attack: Attack | None,
    *,
    seed: int,
    progress: Progress | None = None,
    **options: Any,
) -> None:
    """Train ``model`` in place with AdamW on ``data.train``, poisoned by ``attack`` where there is one.

    The trigger is put on batch by batch, after the random moves, so it looks as it will in the test; see
    `unbackdoor.attacker.training.train_by_batches`.

    Args:
        model: Any classifier of clips, on any device; it ends in eval mode.
        data: Its ``train`` part alone is read.
        task: `VideoTask`, or any other whose ``augment`` keeps shapes.
        attack: None trains a clean model.
        seed: Of the choice of poisoned samples, the order, the augmentation, dropout and triggers that are learned.
        progress: ``progress(step, steps, {"loss": ..., "lr": ...})``, about 100 times.
        **options: See `Training`.

    Raises:
        BadOption: An option is not known or its value not allowed.
        NonFinite: The loss became NaN or infinite.
    """
    how = Training.of(options)
    device = next(model.parameters()).device
    flat = {parameter.ndim for parameter in model.parameters()}
    if 4 in flat and 5 not in flat:  # convolutions of frames; those of clips know no such layout
        model.to(memory_format=torch.channels_last)
    with seeded(seed, device):  # dropout knows no generator but the global one
        train_by_batches(
            model,
            data.train,
            task,
            attack,
            lambda steps: _optimiser(model, how, steps),
            epochs=how.epochs or 0,
            batch_size=how.batch_size,
            generator=torch.Generator().manual_seed(seed),
            count=how.samples,
            precision=how.precision,
            clip=how.clip,
            progress=progress,
        )
    model.to(memory_format=torch.contiguous_format)


def _optimiser(model: nn.Module, how: Training, steps: int) -> tuple[Optimizer, LRScheduler]:
    lr = how.lr or 0.0
    optimiser = torch.optim.AdamW(model.parameters(), lr, weight_decay=how.weight_decay)
    if RECIPES[how.recipe]["schedule"] == "constant":
        return optimiser, ConstantLR(optimiser, factor=1.0)
    return optimiser, OneCycleLR(optimiser, lr, total_steps=steps + 1, pct_start=0.3, cycle_momentum=False)
