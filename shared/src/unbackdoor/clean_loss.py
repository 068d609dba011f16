"""What clean samples ask of a model: their labels, or the answers that the given model gives on them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from unbackdoor.errors import BadOption
from unbackdoor.purifier import Run
from unbackdoor.task import Batch, Task

__all__ = ["CleanLoss"]


@dataclass(frozen=True)
class CleanLoss:
    r"""``(1 - d) L(f(x), y) + d KL(f_0(x) || f(x))``: the task's loss and self-distillation from the given model.

    A few hundred labels say little about all that a network has learned; its own answers say much more, and on
    clean samples, mixed or not, they hold no trigger. ``d = 0`` is the papers' loss.

    Attributes:
        model: What is tuned.
        task: Gives the loss and the divergence.
        teacher: ``f_0``, a frozen copy of the given model in eval mode; None where ``d`` is 0.
        distil: ``d``.
    """

    model: nn.Module
    task: Task
    teacher: nn.Module | None
    distil: float

    @classmethod
    def of(cls, model: nn.Module, task: Task, run: Run, *, distil: float) -> Self:
        """Copy ``model`` as it is now; labels alone are used, with a notice, where that or the divergence fails.

        Raises:
            BadOption: ``distil`` lies outside [0, 1].
        """
        if not 0 <= distil <= 1:
            raise BadOption(f"distil is {distil}; it is a share of the loss and must lie in [0, 1], 0 for labels alone.")
        if distil == 0:
            return cls(model, task, None, 0.0)
        if type(task).divergence is Task.divergence:
            run.notice(f"task {task.name!r} has no divergence between answers, so labels alone are used (distil=0).")
            return cls(model, task, None, 0.0)
        try:
            teacher = copy.deepcopy(model)
        except Exception as error:  # noqa: BLE001 - whatever a user's module raises when it is copied
            run.notice(f"the model cannot be copied ({type(error).__name__}), so labels alone are used (distil=0).")
            return cls(model, task, None, 0.0)
        return cls(model, task, teacher.eval().requires_grad_(False), distil)

    def __call__(self, batch: Batch) -> Tensor:
        """The loss on one batch, augmented already; a scalar in nats."""
        outputs = self.task.forward(self.model, batch.inputs)
        if self.teacher is None:
            return self.task.loss(outputs, batch.targets)
        with torch.no_grad():
            answers = self.task.forward(self.teacher, batch.inputs)
        loss = self.distil * self.task.divergence(outputs, answers, batch.targets).mean()
        if self.distil < 1:
            loss = loss + (1 - self.distil) * self.task.loss(outputs, batch.targets)
        return loss
