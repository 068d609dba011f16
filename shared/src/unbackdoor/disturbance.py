"""Disturbed inputs for the model that is tuned, which may be sought by how badly it takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from unbackdoor.tree import Tree

if TYPE_CHECKING:
    from unbackdoor.data import CleanSet
    from unbackdoor.task import Task

__all__ = ["Blind", "Disturber", "Losses", "disturbed_loss", "started"]

_BATCH = 64

Losses = Callable[[Tree], Tensor]
"""What the loss of each sample of a batch would be, did the tuned model read other inputs: ``(batch,)``, no graph."""


class Disturber(Protocol):
    """Disturbs the batches of one purification."""

    def look(self, samples: Iterator[tuple[Tree, Losses]]) -> None:
        """Look at the given model, before anything is tuned.

        Args:
            samples: Endless: inputs of clean batches with the losses of the given model on them, by their labels. As
                many are drawn as are wanted.
        """

    def __call__(self, inputs: Tree, losses: Losses) -> Tree:
        """Disturbed ``inputs`` of a batch, mixed or not; a tree of the same form.

        Args:
            inputs: As the model that is imitated reads them.
            losses: Tells how the tuned model takes one attempt or another; each call is a forward pass.
        """

    def findings(self) -> list[str]:
        """What a user should know of what was found, for the report."""


@dataclass(frozen=True)
class Blind:
    """`Task.disturb`, however the tuned model takes it."""

    task: Task
    generator: torch.Generator

    def look(self, samples: Iterator[tuple[Tree, Losses]]) -> None:
        """Nothing is looked at."""

    def __call__(self, inputs: Tree, losses: Losses) -> Tree:
        """See `Task.disturb`."""
        return self.task.disturb(inputs, self.generator)

    def findings(self) -> list[str]:
        """Nothing is sought."""
        return []


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
