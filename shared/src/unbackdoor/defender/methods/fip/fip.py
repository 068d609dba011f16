"""FIP: Fisher information guided purification of all weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.curvature.objective import PAPER, FisherTerms
from unbackdoor.defender.purifier import Run
from unbackdoor.defender.reparam import FullWeights
from unbackdoor.task import Task

__all__ = ["FIP"]


@dataclass(frozen=True, kw_only=True)
class FIP(FisherTerms):
    """FIP (Karim et al., CCS 2024): fine-tune all weights towards a smooth minimum of the loss."""

    name: ClassVar[str] = "fip"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PAPER

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        with FullWeights(model) as weights:
            self.smooth(weights, model, clean, task, run, message="smoothing the loss")
            weights.fold_()
