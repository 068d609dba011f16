"""Disturbed inputs for the model that is tuned, which may be sought by how badly it takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbackdoor.data import CleanSet
from unbackdoor.task import Disturber, Task
from unbackdoor.tree import Tree, leaves

__all__ = ["disturbed_loss", "left", "started"]

_BATCH = 64


def started(
    task: Task, model: nn.Module, clean: CleanSet, generator: torch.Generator, batch_size: int = _BATCH
) -> Disturber:
    """The task's disturber for ``model``, which is as it was given; it has looked at batches of up to 64 samples.

    Args:
        task: Gives it.
        model: As it was given.
        clean: Where the batches are drawn from.
        generator: Every draw comes from it.
        batch_size: Samples for which there is memory, a backward pass included.
    """
    disturber = task.disturber(generator)
    batches = clean.batches(min(batch_size, _BATCH), generator)
    disturber.look((b.inputs, partial(_losses, model, task, [(1.0, b.targets)])) for b in batches)
    return disturber


def left(disturber: Disturber, task: Task, model: nn.Module, judges: Sequence[CleanSet]) -> Tensor | None:
    """`Disturber.left` for all samples of ``judges`` and ``model`` as it is now: ``(n,)`` nats, or None."""
    parts = [
        disturber.left(batch.inputs, partial(_losses, model, task, [(1.0, batch.targets)]))
        for samples in judges
        for batch in samples.once(_BATCH)
    ]
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


def disturbed_loss(
    model: nn.Module, task: Task, inputs: Tree, targets: Sequence[tuple[float, Tree]], disturber: Disturber | None
) -> Tensor:
    """`Task.loss` of a model that reads disturbed inputs; without a disturber, of one that reads them as they are.

    Args:
        model: What is tuned.
        task: Gives forward pass and loss.
        inputs: Of a batch.
        targets: Each with its share of the loss; not empty.
        disturber: See above.

    Returns:
        A scalar in nats.
    """
    losses = partial(_losses, model, task, targets)
    outputs = task.forward(model, inputs if disturber is None else disturber(inputs, losses))
    terms = [task.loss(outputs, aim) if share == 1 else share * task.loss(outputs, aim) for share, aim in targets]
    return terms[0] if len(terms) == 1 else torch.stack(terms).sum()


def _losses(model: nn.Module, task: Task, targets: Sequence[tuple[float, Tree]], read: Tree) -> Tensor:
    graph = any(leaf.requires_grad for leaf in leaves(read))
    with torch.set_grad_enabled(graph), _stored_statistics(model):
        outputs = task.forward(model, read)
        return torch.stack([-share * task.log_likelihood(outputs, aim) for share, aim in targets]).sum(0)


@contextmanager
def _stored_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm as in a test: a search must not move its statistics, nor one sample change another's loss."""
    live = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    for module in live:
        module.training = False
    try:
        yield
    finally:
        for module in live:
            module.training = True
