"""Self-distillation fine-tuning: the given model's answers to clean samples, asked of strongly augmented ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.fit import Fitted
from unbackdoor.defender.loss import distillation_targets, frozen_copy
from unbackdoor.defender.purifier import Run, option
from unbackdoor.defender.reparam import FullWeights, NeuronMask, SpectralShift
from unbackdoor.errors import BadOption
from unbackdoor.network.norms import check_norm_mode, train_norms
from unbackdoor.task import Batch, Task

__all__ = ["SDFT"]


@dataclass(frozen=True, kw_only=True)
class SDFT(Fitted):
    """Self-distillation from weakly to strongly augmented clean samples; the default method."""

    name: ClassVar[str] = "sdft"

    steps: int = option(300, "optimiser steps; epochs overrides them")
    lr: float = option(0.05, "peak learning rate of SGD")
    tune: Literal["weights", "masks", "shifts"] = option("weights", "all weights, neuron masks, or singular values")
    distil: float = option(1.0, "share of the loss that asks for the given model's answers instead of labels")
    mixup: float = option(1.0, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")
    strong: bool = option(True, "whether the tuned model reads strongly augmented samples")
    without: str = option("", "families of strong changes to leave out, with spaces between")
    bn: Literal["update", "frozen"] = option("update", "BatchNorm in train mode, or with its stored statistics")
    skip: str = option("", "weights to leave alone: patterns of their names, with spaces between")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        check_norm_mode(self.bn)
        if self.tune not in ("weights", "masks", "shifts"):
            raise BadOption(f"nothing to tune is called {self.tune!r}. Known: weights, masks, shifts.")
        if not 0 <= self.distil <= 1:
            raise BadOption(
                f"distil is {self.distil}; it is a share of the loss and must lie in [0, 1], 0 for labels alone."
            )

    @property
    def updates_buffers(self) -> bool:
        """BatchNorm's running statistics move with ``bn="update"``."""
        return self.bn == "update"

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        distil = self._distil(task, run)
        teacher = frozen_copy(model, shared=self.tune != "weights") if distil > 0 else None
        without = self.without.split()

        def objective(step: int, batch: Batch) -> Tensor:
            """``(1 - d) L(f(s(x)), y) + d L(f(s(x)), f_0(x))`` of weakly augmented, mixed ``x`` and a strong ``s``."""
            weak = task.augment(batch, run.generator, mix=self.mixup)
            inputs = task.strong_augment(weak.inputs, run.generator, without=without) if self.strong else weak.inputs
            outputs = task.forward(model, inputs)
            aims = [(1 - distil, weak.targets)] if distil < 1 else []
            if teacher is not None:
                aims.append((distil, distillation_targets(teacher, task, weak).targets))
            return torch.stack([share * task.loss(outputs, aim) for share, aim in aims]).sum()

        probe = partial(task.forward, model, clean.samples[slice(0, 2)].inputs)
        with self._handle(model, probe) as handle:
            run.notices += handle.notices
            train_norms(model, self.updates_buffers)
            self.fit(
                handle.parameters().values(),
                objective,
                clean,
                run,
                after_step=handle.project_,
                message="imitating the given model under strong changes",
            )
            handle.fold_()
        model.eval()

    def _distil(self, task: Task, run: Run) -> float:
        """``d``; 0 where there is nothing to be learned from the given model's answers."""
        kind, why = type(task), None
        if kind.imitate is Task.imitate:
            why = "cannot turn a model's answers into targets"
        elif not self.strong or kind.strong_augment is Task.strong_augment:
            why = "changes no sample strongly, and to what it reads itself the given model has its answers already"
        if why is None or self.distil == 0:
            return self.distil
        run.notice(f"task {task.name!r} {why}: the labels alone were asked for (distil=0).")
        return 0.0

    def _handle(self, model: nn.Module, probe: Callable[[], object]) -> FullWeights | NeuronMask | SpectralShift:
        skip = self.skip.split()
        if self.tune == "masks":
            return NeuronMask(model, probe, skip=skip)
        if self.tune == "shifts":
            return SpectralShift(model, probe, skip=skip)
        return FullWeights(model, skip=skip)
