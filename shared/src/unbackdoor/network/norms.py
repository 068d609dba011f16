"""BatchNorm's running statistics during a purification: frozen, moving, left out of a pass, or estimated afresh."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbackdoor.data import CleanSet
from unbackdoor.errors import BadOption
from unbackdoor.task import Task

__all__ = ["check_norm_mode", "reestimate_norms", "train_norms", "untracked"]


def check_norm_mode(mode: str) -> None:
    """Refuse a mode of BatchNorm that does not exist.

    Raises:
        BadOption: It is neither ``"update"`` nor ``"frozen"``.
    """
    if mode not in ("update", "frozen"):
        raise BadOption(f"no BatchNorm mode {mode!r}. Known: update, frozen.")


def train_norms(model: nn.Module, updating: bool) -> None:
    """Put every BatchNorm layer into train mode, or into eval mode, and leave all other layers as they are."""
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
    norms = [norm for norm in _norms(model) if norm.track_running_stats]
    if not norms:
        return
    given = [norm.momentum for norm in norms]
    size = max(2, min(batch_size, len(clean)))
    batches = clean.batches(size, generator)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative: the mean over all batches since the reset
        norm.train()
    try:
        for _ in range(max(1, passes * len(clean) // size)):
            task.forward(model, task.augment(next(batches), generator, mix=0).inputs)
    finally:
        for norm, momentum in zip(norms, given, strict=True):
            norm.momentum = momentum
            norm.eval()


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
