"""Perturbed inputs, for methods that search in input space: adding, staying in range, putting back into the tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from unbackdoor.data import CleanSet
from unbackdoor.errors import UnsupportedTask
from unbackdoor.task import Task
from unbackdoor.tree import Tree, leaves, tree_map

__all__ = ["InputSpace"]


@dataclass(frozen=True)
class InputSpace:
    """What may be perturbed in a task's inputs, and the range that real inputs have.

    The range is that of the clean samples, not [0, 1], which would cut normalised values and coordinates.

    Attributes:
        task: Its `Task.perturbable` says what.
        low: Smallest value in the clean samples.
        high: Largest value.
        shape: Of one sample's perturbable part.
        dtype: Of the same.
        device: Of the same.
    """

    task: Task
    low: float
    high: float
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, task: Task, clean: CleanSet) -> Self:
        """Look at all clean samples.

        Raises:
            UnsupportedTask: The task has nothing to perturb, or its inputs are a tree that does not hold the very
                tensor that is perturbed, so that it cannot be put back.
        """
        inputs = clean.samples.inputs
        try:
            space = task.perturbable(inputs)
        except NotImplementedError as error:
            raise UnsupportedTask(f"inputs cannot be perturbed: {error}.") from error
        if not isinstance(inputs, Tensor) and not any(leaf is space for leaf in leaves(inputs)):
            raise UnsupportedTask(
                f"task {task.name!r} perturbs what is not itself a part of its inputs; give inputs that hold the "
                "floats of Task.perturbable as one of their tensors."
            )
        low, high = float(space.amin()), float(space.amax())
        return cls(task, low, high, tuple(space.shape[1:]), space.dtype, space.device)

    def zeros(self, count: int = 1) -> Tensor:
        """A perturbation of nothing, shape ``(count, *shape)``; with ``count=1`` it is shared by all samples."""
        return torch.zeros(count, *self.shape, dtype=self.dtype, device=self.device)

    def add(self, inputs: Tree, delta: Tensor) -> Tree:
        """The inputs with ``delta``, of shape ``(1 or batch, *shape)``, added and cut to the range; differentiable."""
        space = self.task.perturbable(inputs)
        moved = (space + delta).clamp(self.low, self.high)
        if isinstance(inputs, Tensor):
            return moved
        return tree_map(lambda leaf: moved if leaf is space else leaf, inputs)
