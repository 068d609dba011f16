"""Training of victims and of clean models: device-resident clouds, poison put on after the augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.training import PRECISIONS, Progress, TrainOptions, train_by_batches
from unbackdoor.builders import seeded
from unbackdoor.errors import BadOption
from unbackdoor.task import Task

__all__ = ["RECIPES", "Training", "train"]

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "fast": {"epochs": 20, "lr": 4e-3, "weight_decay": 1e-4},
    "paper": {"epochs": 200, "lr": 1e-3, "weight_decay": 1e-4},
}
"""``fast``: Adam with one cycle. ``paper``: Adam, half the rate every 20 epochs (FIP, A.3.1)."""


@dataclass(frozen=True, kw_only=True)
class Training(TrainOptions):
    """The options of `train`.

    Attributes:
        epochs: Passes over the data; None takes the recipe's.
        batch_size: Clouds a step.
        lr: Peak learning rate of Adam; None takes the recipe's.
        weight_decay: Of AdamW; None takes the recipe's.
        recipe: ``"fast"`` or ``"paper"``.
        precision: One of `unbackdoor.attacker.training.PRECISIONS`.
        samples: Train on so many, drawn once from the training part; None takes all.
    """

    epochs: int | None = None
    batch_size: int = 32
    lr: float | None = None
    weight_decay: float | None = None
    recipe: str = "fast"
    precision: str = "fp32"
    samples: int | None = None

    def __post_init__(self) -> None:
        """Fill in what the recipe says and refuse values that are not allowed."""
        self.check_known(recipe=RECIPES, precision=PRECISIONS)
        for name in ("epochs", "lr", "weight_decay"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, RECIPES[self.recipe][name])
        self.check_at_least(1, "epochs")
        self.check_at_least(2, "batch_size")
        if self.samples is not None and self.samples < 2:
            raise BadOption(f"samples is {self.samples}; give at least 2, or leave it out to train on all.")
        if not self.lr or not self.lr > 0:
            raise BadOption(f"lr is {self.lr}; it must be above 0.")


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
    """Train ``model`` in place with Adam on ``data.train``, poisoned by ``attack`` where there is one.

    Which clouds are poisoned is drawn once. Their trigger is put on batch by batch, after rotation, scale, dropped
    points and jitter: it looks as it will in the test.

    Args:
        model: Any classifier, on any device; it ends in eval mode.
        data: Its ``train`` part alone is read.
        task: `PointTask`, or any other whose ``augment`` keeps shapes.
        attack: None trains a clean model.
        seed: Of the choice of poisoned clouds, the order, the augmentation, dropout and drawn triggers.
        progress: ``progress(step, steps, {"loss": ..., "lr": ...})``, about 100 times.
        **options: See `Training`.

    Raises:
        BadOption: An option is not known or its value not allowed.
        NonFinite: The loss became NaN or infinite.
    """
    how = Training.of(options)
    device = next(model.parameters()).device
    with seeded(seed, device):
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
            progress=progress,
        )


def _optimiser(model: nn.Module, how: Training, steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
    lr = how.lr or 0.0
    optimiser = torch.optim.AdamW(model.parameters(), lr, weight_decay=how.weight_decay or 0.0)
    if how.recipe == "fast":
        return optimiser, OneCycleLR(optimiser, lr, total_steps=steps + 1, pct_start=0.3, cycle_momentum=False)
    every = max(1, 20 * steps // (how.epochs or 1))
    return optimiser, StepLR(optimiser, every, gamma=0.5)
