"""Re-estimation of BatchNorm's statistics alone: a control, not a defence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.network.norms import estimating
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
        batches = clean.batches(self.batch_size, run.generator)
        every = max(1, self.steps // 10)
        with estimating(model, self.momentum) as count:
            if not count:
                run.notice("the model has no BatchNorm with running statistics, so nothing was changed.")
                return
            for step in range(1, self.steps + 1):
                task.forward(model, task.augment(next(batches), run.generator, mix=0).inputs)
                if step % every == 0:
                    run.record(step, self.steps, "re-estimating BatchNorm")
