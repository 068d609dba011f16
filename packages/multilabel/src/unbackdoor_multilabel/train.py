"""Training of multi-label victims and of clean models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.training import PRECISIONS, Progress, TrainOptions, train_by_batches
from unbackdoor.builders import seeded
from unbackdoor.errors import BadOption
from unbackdoor.task import Task
from unbackdoor.tree import Tree
from unbackdoor_multilabel.losses import asymmetric_scores
from unbackdoor_multilabel.rows import shares
from unbackdoor_multilabel.task import MultilabelTask

__all__ = ["RECIPES", "Training", "train"]

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "fast": {"epochs": 30, "batch_size": 64, "lr": 3e-3, "weight_decay": 1e-4, "loss": "bernoulli"},
    "paper": {"epochs": 40, "batch_size": 56, "lr": 1e-4, "weight_decay": 1e-4, "loss": "asymmetric"},
}
"""``fast``: from random weights. ``paper``: that of ML-Decoder on COCO (AdamW here for Adam with decay on weights
only, one-cycle, asymmetric loss), which starts from pre-trained weights and averages them."""

_LOSSES = ("bernoulli", "asymmetric")


@dataclass(frozen=True, kw_only=True)
class Training(TrainOptions):
    """The options of `train`.

    Attributes:
        epochs: Passes over the data; None takes the recipe's.
        batch_size: Samples a step; None takes the recipe's.
        lr: Peak learning rate of AdamW; None takes the recipe's.
        weight_decay: Of weights, not of biases and norms; None takes the recipe's.
        loss: ``"bernoulli"`` or ``"asymmetric"``; None takes the recipe's.
        recipe: ``"fast"`` or ``"paper"``, see `RECIPES`.
        precision: One of `unbackdoor.attacker.training.PRECISIONS`.
        samples: Train on so many, drawn once from the training part; None takes all.
    """

    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    loss: str | None = None
    recipe: str = "fast"
    precision: str = "auto"
    samples: int | None = None

    def __post_init__(self) -> None:
        """Fill in what the recipe says and refuse values that are not allowed."""
        self.check_known(recipe=RECIPES, precision=PRECISIONS)
        for name, value in RECIPES[self.recipe].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        self.check_known(loss=_LOSSES)
        self.check_at_least(1, "epochs", "batch_size")
        if self.samples is not None and self.samples < 2:
            raise BadOption(f"samples is {self.samples}; give at least 2, or leave it out to train on all.")
        if not self.lr or not self.lr > 0:
            raise BadOption(f"lr is {self.lr}; it must be above 0.")


@dataclass(frozen=True)
class _Asymmetric(MultilabelTask):
    """The task as training with the asymmetric loss sees it."""

    def log_likelihood(self, outputs: Tree, targets: Tree) -> Tensor:
        """Minus the asymmetric loss of each sample."""
        logits = outputs.float()
        return asymmetric_scores(logits, shares(targets, logits.dtype))


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

    Which samples are poisoned is drawn once. A trigger of pixels is put on after the random crop and flip; one that
    lies in the labels is chosen by `Attack.prepare` before.

    Args:
        model: Any multi-label classifier, on any device; it ends in eval mode.
        data: Its ``train`` part alone is read.
        task: `MultilabelTask`, or any other whose ``augment`` keeps shapes and whose loss is its own.
        attack: None trains a clean model.
        seed: Of the choice of poisoned samples, the order, the augmentation and dropout.
        progress: ``progress(step, steps, {"loss": ..., "lr": ...})``, about 100 times.
        **options: See `Training`.

    Raises:
        BadOption: An option is not known or its value not allowed.
        NonFinite: The loss became NaN or infinite.
    """
    how = Training.of(options)
    if how.loss == "asymmetric":
        if not isinstance(task, MultilabelTask):
            raise BadOption(f"loss is 'asymmetric', which is of label rows; the task is {task.name!r}.")
        task = _Asymmetric(**{item.name: getattr(task, item.name) for item in fields(MultilabelTask)})
    channels_last = any(parameter.ndim == 4 for parameter in model.parameters())
    if channels_last:  # much faster on CPUs and tensor cores; the values are the same
        model.to(memory_format=torch.channels_last)
    with seeded(seed, next(model.parameters()).device):
        train_by_batches(
            model,
            data.train,
            task,
            attack,
            lambda steps: _optimiser(model, how, steps),
            epochs=how.epochs or 0,
            batch_size=how.batch_size or 1,
            generator=torch.Generator().manual_seed(seed),
            count=how.samples,
            precision=how.precision,
            arrange=lambda images: images.contiguous(memory_format=torch.channels_last),
            progress=progress,
        )
    model.to(memory_format=torch.contiguous_format)


def _optimiser(model: nn.Module, how: Training, steps: int) -> tuple[torch.optim.AdamW, LRScheduler]:
    tuned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in tuned if p.ndim >= 2], "weight_decay": how.weight_decay or 0.0},
        {"params": [p for p in tuned if p.ndim < 2], "weight_decay": 0.0},
    ]
    lr = how.lr or 0.0
    optimiser = torch.optim.AdamW(groups, lr)
    return optimiser, OneCycleLR(optimiser, lr, total_steps=steps + 1, pct_start=0.3, cycle_momentum=False)
