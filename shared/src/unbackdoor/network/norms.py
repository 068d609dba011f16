"""BatchNorm during a purification: frozen, in train mode, left out of a pass, or estimated afresh.

All that sets its mode goes through `train_norms` and `estimating`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbackdoor.data import CleanSet
from unbackdoor.errors import BadOption
from unbackdoor.task import Task

__all__ = ["check_norm_mode", "estimating", "reestimate_norms", "train_norms", "untracked"]


def check_norm_mode(mode: str) -> None:
    """Refuse a mode of BatchNorm that does not exist.

    Raises:
        BadOption: It is neither ``"update"`` nor ``"frozen"``.
    """
    if mode not in ("update", "frozen"):
        raise BadOption(f"no BatchNorm mode {mode!r}. Known: update, frozen.")


def train_norms(model: nn.Module, updating: bool) -> None:
    """Put every BatchNorm layer into train mode, or into eval mode, and leave all other layers as they are.

    Args:
        model: Or a single layer.
        updating: Whether it normalises by the batch and moves its running statistics.
    """
    for norm in _norms(model):
        norm.train(updating)


@contextmanager
def untracked(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm layers in train mode leave their running statistics alone: for a second pass over a batch."""
    tracking = [norm for norm in _norms(model) if norm.track_running_stats and norm.training]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


@contextmanager
def estimating(model: nn.Module, momentum: float | None) -> Iterator[int]:
    """Inside, BatchNorm layers with running statistics take in what passes; all are in eval mode afterwards.

    Args:
        model: In eval mode.
        momentum: Weight of a new batch; None forgets the old statistics and takes the plain mean over all batches.

    Yields:
        How many such layers there are.
    """
    norms = [norm for norm in _norms(model) if norm.track_running_stats]
    given = [norm.momentum for norm in norms]
    for norm in norms:
        if momentum is None:
            norm.reset_running_stats()
        norm.momentum = momentum
        train_norms(norm, True)
    try:
        yield len(norms)
    finally:
        for norm, own in zip(norms, given, strict=True):
            norm.momentum = own
            train_norms(norm, False)


@torch.no_grad()
def reestimate_norms(
    model: nn.Module, task: Task, clean: CleanSet, generator: torch.Generator, *, batch_size: int, passes: int
) -> None:
    """Running statistics of the weights as they are now: the plain mean over all batches, nothing of the old ones.

    Args:
        model: In eval mode, and again afterwards.
        task: Forward pass and augmentation, without MixUp.
        clean: Every sample enters ``passes`` times.
        generator: Draws augmentation and order.
        batch_size: Samples a batch; sets smaller than that make one batch.
        passes: Over the clean samples.
    """
    size = max(2, min(batch_size, len(clean)))
    batches = clean.batches(size, generator)
    with estimating(model, None) as count:
        for _ in range(max(1, passes * len(clean) // size) if count else 0):
            task.forward(model, task.augment(next(batches), generator, mix=0).inputs)


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
