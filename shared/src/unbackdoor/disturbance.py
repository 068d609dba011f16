"""Disturbed inputs for the model that is tuned, which may be sought by how badly it takes them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.task import Disturber, Task
from unbackdoor.tree import Tree

__all__ = ["disturbed_loss", "started"]

_BATCH = 64


def started(task: Task, model: nn.Module, clean: CleanSet, generator: torch.Generator) -> Disturber:
    """The task's disturber for ``model``, which is as it was given; it has looked at it."""
    disturber = task.disturber(generator)
    batches = clean.batches(_BATCH, generator)
    disturber.look((b.inputs, partial(_losses, model, task, [(1.0, b.targets)])) for b in batches)
    return disturber


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


@torch.no_grad()
def _losses(model: nn.Module, task: Task, targets: Sequence[tuple[float, Tree]], read: Tree) -> Tensor:
    outputs = task.forward(model, read)
    return torch.stack([-share * task.log_likelihood(outputs, aim) for share, aim in targets]).sum(0)
