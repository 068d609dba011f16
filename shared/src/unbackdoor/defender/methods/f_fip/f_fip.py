"""Fast FIP: Fisher information guided purification in the space of singular values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.curvature.objective import PAPER, FisherTerms
from unbackdoor.defender.purifier import Run, option
from unbackdoor.defender.reparam import SpectralShift
from unbackdoor.task import Task

__all__ = ["FastFIP"]


@dataclass(frozen=True, kw_only=True)
class FastFIP(FisherTerms):
    """f-FIP (Karim et al., CCS 2024): tune singular values towards a smooth minimum, then fold them in."""

    name: ClassVar[str] = "f-fip"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PAPER

    skip: str = option("", "weights to leave alone: patterns of their names, with spaces between")

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        probe = partial(task.forward, model, clean.samples[slice(0, 2)].inputs)
        with SpectralShift(model, probe, skip=self.skip.split()) as shift:
            run.notices += shift.notices
            self.smooth(shift, model, clean, task, run, message="shifting singular values")
            shift.fold_()
