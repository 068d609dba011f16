"""What clean samples ask of a model: their labels, or another model's answers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from unbackdoor.task import Batch, Task
from unbackdoor.tree import leaves

__all__ = ["distillation_targets", "frozen_copy", "label_loss"]


def label_loss(model: nn.Module, task: Task, batch: Batch) -> Tensor:
    """Mean negative log-likelihood of the labels, a scalar in nats: Eq. (1) of NFT, Eq. (4) of FIP divided by n.

    With a mixed batch it is the MixUp loss, Eq. (4) of NFT.
    """
    return task.loss(task.forward(model, batch.inputs), batch.targets)


def frozen_copy(model: nn.Module, *, shared: bool = False) -> nn.Module:
    """``model`` as it is now, in eval mode: what is imitated.

    Args:
        model: Not attached to a handle.
        shared: Whether the copy may use the same parameters, which nothing will change while it is used.
    """
    made = copy.deepcopy(model, {id(p): p for p in model.parameters()} if shared else {})
    return made.eval()


@torch.no_grad()
def distillation_targets(teacher: nn.Module, task: Task, batch: Batch) -> Batch:
    """The same inputs, with the teacher's answers to them as targets: self-distillation.

    Where labels leave nothing open (`Task.settled`), as those of several classes do, they stay.

    Raises:
        NotImplementedError: The task cannot turn answers into targets (`Task.imitate`).
    """
    outputs = task.forward(teacher, batch.inputs)
    settled = task.settled(batch.targets)
    if settled is None:
        settled = torch.zeros((), dtype=torch.bool, device=leaves(outputs)[0].device)
    return Batch(batch.inputs, task.imitate(outputs, batch.targets, settled))
