"""Re-estimation of BatchNorm's statistics alone: a control, not a defence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbackdoor.data import CleanSet
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.task import Task

__all__ = ["BNOnly"]


@dataclass(frozen=True, kw_only=True)
class BNOnly(Purifier):
    """Feed clean samples through BatchNorm in train mode and change nothing else.

    Whatever a defence achieves beyond this row is its own merit.
    """

    name: ClassVar[str] = "bn-only"

    steps: int = option(50, "forward passes")
    batch_size: int = option(128, "samples a pass")
    momentum: float = option(0.1, "weight of a new batch in the running statistics")

    @property
    def updates_buffers(self) -> bool:
        """The statistics are all that this changes."""
        return True

    @torch.no_grad()
    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        if not norms:
            run.notice("the model has no BatchNorm with running statistics, so nothing was changed.")
            return
        given = [norm.momentum for norm in norms]
        batches = clean.batches(self.batch_size, run.generator)
        every = max(1, self.steps // 10)
        for norm in norms:
            norm.train()
            norm.momentum = self.momentum
        try:
            for step in range(1, self.steps + 1):
                task.forward(model, task.augment(next(batches), run.generator, mix=0).inputs)
                if step % every == 0:
                    run.record(step, self.steps, "re-estimating BatchNorm")
        finally:
            for norm, momentum in zip(norms, given, strict=True):
                norm.momentum = momentum
                norm.eval()
