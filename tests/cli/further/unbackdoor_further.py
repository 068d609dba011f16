"""What somebody else offers: an attack for the toy task, and a method that ruins every model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.data import CleanSet
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.task import Task


@dataclass(frozen=True, kw_only=True)
class Edge(Attack):
    """Set the first two features."""

    name: ClassVar[str] = "edge"
    health: ClassVar[HealthFloor] = HealthFloor(clean=50.0, asr=80.0)
    strength: float = 2.0

    def trigger(self, inputs: Any, generator: torch.Generator | None = None) -> Any:
        changed = inputs.clone()
        changed[:, :2] = self.strength
        return changed


@dataclass(frozen=True, kw_only=True)
class Shrink(Purifier):
    """Multiply every weight."""

    name: ClassVar[str] = "shrink"
    factor: float = option(0.0, "what each weight is multiplied by")

    @torch.no_grad()
    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        run.record(1, 1, "shrinking")
        for value in model.parameters():
            value.mul_(self.factor)
