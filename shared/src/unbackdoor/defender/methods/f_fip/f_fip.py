"""Fast FIP: Fisher information guided purification in the space of singular values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.clean_loss import CleanLoss
from unbackdoor.defender.curvature.objective import FisherObjective
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.reparam import SpectralShift
from unbackdoor.defender.schedule import Schedule
from unbackdoor.defender.strength import Pace, attenuate_and_recover
from unbackdoor.errors import BadOption
from unbackdoor.task import Task

__all__ = ["FastFIP"]


@dataclass(frozen=True, kw_only=True)
class FastFIP(Purifier):
    """f-FIP (Karim et al., CCS 2024): tune singular values towards a smooth minimum, then fold them in."""

    name: ClassVar[str] = "f-fip"
    tunes_sparse: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "steps": 200,
            "batch_size": 128,
            "lr": 0.01,
            "schedule": "step",
            "clip": None,
            "relative": False,
            "floor": None,
            "gain": None,
            "rounds": 1,
            "attenuation": 1.0,
            "holdout": 0.0,
            "mixup": 0.0,
            "distil": 0.0,
            "disturb": False,
            "trace_weight": 1e-3,
            "trace_every": 10,
            "trace_samples": 128,
            "retain_weight": 5.0,
            "embeddings": False,
        },
    }

    steps: int = option(1200, "optimiser steps of all rounds together")
    batch_size: int = option(64, "samples a step")
    lr: float = option(0.2, "peak learning rate of SGD on the shifts")
    momentum: float = option(0.9, "momentum of SGD")
    schedule: Schedule = option("one-cycle", "learning rate over the run: one-cycle, cosine, step or constant")
    clip: float | None = option(1.0, "largest norm of the gradient of all shifts together; None for no bound")
    relative: bool = option(True, "shifts in units of their singular value")
    floor: float | None = option(0.05, "smallest singular value in units of the given one; None for no bound but 0")
    gain: float | None = option(
        10.0, "largest growth of all layers together; each may grow by its root; None: no bound"
    )
    rounds: int = option(15, "rounds of attenuation and recovery at most; they share the steps")
    attenuation: float = option(0.7, "factor of each round on all values before they recover; 1 for none")
    max_clean_drop: float = option(2.0, "points of clean accuracy on the holdout that the rounds may cost")
    holdout: float = option(0.2, "share of the clean samples that only judges the rounds")
    mixup: float = option(1.0, "MixUp's lambda ~ Beta(a, a), a rising to this over the rounds; 0 for none")
    distil: float = option(1.0, "share of the loss that asks for the given model's answers instead of labels")
    disturb: bool = option(True, "whether the model is tuned on disturbed inputs, where the task knows disturbances")
    reuse: int = option(8, "times that a mixture and the given model's answer to it are drawn; 1 for once")
    trace_weight: float = option(1e-3, "eta_F: weight of Tr(F)")
    trace_every: int = option(10, "Tr(F) enters every so many steps")
    trace_samples: int = option(32, "samples of a batch that estimate Tr(F)")
    retain_weight: float = option(0.0, "eta_r: weight of the Fisher-weighted distance to the given model")
    embeddings: bool = option(True, "shifts of the lengths of embedding tables' rows too")
    skip: str = option("", "weights to leave alone: patterns of their names, with spaces between")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        if self.trace_every < 1 or self.trace_samples < 1:
            raise BadOption(
                f"trace_every is {self.trace_every}, trace_samples {self.trace_samples}; both must be at least 1."
            )

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        objective = FisherObjective(
            trace_weight=self.trace_weight,
            trace_every=self.trace_every,
            trace_samples=self.trace_samples,
            retain_weight=self.retain_weight,
        )
        clean_loss = CleanLoss.of(
            model, task, clean, run,
            distil=self.distil, mixup=self.mixup, batch_size=self.batch_size, reuse=self.reuse, disturb=self.disturb,
        )  # fmt: skip
        probe = partial(task.forward, model, clean.samples[slice(0, 2)].inputs)
        skip = self.skip.split()
        shift = SpectralShift(
            model,
            probe,
            relative=self.relative,
            floor=self.floor,
            gain=self.gain,
            skip=skip,
            embeddings=self.embeddings,
        )
        with shift:
            run.notices += shift.notices
            anchor = objective.prepare(shift, model, task, clean, run)
            pace = Pace()

            def tune(steps: int, share: float, message: str) -> None:
                samples, loss = clean_loss.prepare(steps, self.batch_size, share * self.mixup)
                finetune(
                    list(shift.parameters().values()),
                    partial(objective, loss=loss, anchor=anchor),
                    samples,
                    run,
                    steps=steps,
                    batch_size=self.batch_size,
                    lr=self.lr * pace.factor,
                    momentum=self.momentum,
                    schedule=self.schedule,
                    clip=self.clip,
                    after_step=shift.project_,
                    message=f"shifting singular values {message}",
                )

            attenuate_and_recover(
                shift,
                tune,
                model,
                task,
                clean,
                run,
                steps=self.steps,
                rounds=self.rounds,
                attenuation=self.attenuation,
                max_clean_drop=self.max_clean_drop,
                pace=pace,
            )
            shift.fold_()
