"""Disturbed inputs for the model that is tuned, and what is learned from how it takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from unbackdoor.tree import Tree, tree_map

if TYPE_CHECKING:
    from unbackdoor.task import Task

__all__ = ["Disturber", "Forgetful", "disturbed_loss"]


class Disturber(Protocol):
    """Makes disturbed inputs for one purification."""

    def __call__(self, inputs: Tree) -> Tree:
        """``inputs`` of a batch, mixed or not, disturbed; a tree of the same form."""

    def learn(self, losses: Callable[[], Tensor]) -> None:
        """Take note of the loss of each sample of the last batch, which ``losses`` gives: shape ``(batch,)``."""


@dataclass(frozen=True)
class Forgetful:
    """`Task.disturb` anew for each batch, whatever came of the last one."""

    task: Task
    generator: torch.Generator

    def __call__(self, inputs: Tree) -> Tree:
        """See `Task.disturb`."""
        return self.task.disturb(inputs, self.generator)

    def learn(self, losses: Callable[[], Tensor]) -> None:
        """Nothing is learned."""


def disturbed_loss(
    model: nn.Module, task: Task, inputs: Tree, targets: Sequence[tuple[float, Tree]], disturber: Disturber | None
) -> Tensor:
    """`Task.loss` of a model that reads disturbed inputs; without a disturber, of one that reads them as they are.

    Args:
        model: What is tuned.
        task: Gives forward pass and loss.
        inputs: Of a batch.
        targets: Each with its share of the loss; not empty.
        disturber: Learns from the losses of the samples.

    Returns:
        A scalar in nats.
    """
    outputs = task.forward(model, inputs if disturber is None else disturber(inputs))
    if disturber is not None:
        detached = tree_map(Tensor.detach, outputs)
        disturber.learn(lambda: torch.stack([-share * task.log_likelihood(detached, t) for share, t in targets]).sum(0))
    losses = [task.loss(outputs, aim) if share == 1 else share * task.loss(outputs, aim) for share, aim in targets]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()
