"""Fine-pruning: prune what is dormant on clean samples, then fine-tune."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from unbackdoor.data import CleanSet
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.reparam import FullWeights, NeuronMask
from unbackdoor.defender.reparam.tracing import Probe
from unbackdoor.defender.schedule import Schedule
from unbackdoor.defender.tolerance import AccuracyTolerance, check_drop, strongest_within
from unbackdoor.errors import BadOption, UnsupportedModel
from unbackdoor.network.norms import check_norm_mode, train_norms
from unbackdoor.task import Batch, Task

__all__ = ["FinePruning", "LastLayer"]


class LastLayer:
    """The last layer with weights, and the units of the layer before it, as they enter it.

    A unit that the last layer does not read is a unit whose output is 0, whatever bias, normalisation, activation or
    addition stands between the convolution that made it and the last layer.
    """

    def __init__(self, model: nn.Module, probe: Probe, *, skip: Sequence[str] = ()) -> None:
        """Find it in the order of execution, among the weights whose names fit no pattern of ``skip``.

        Raises:
            UnsupportedModel: It is no linear or convolutional layer, or a transposed one.
        """
        sites = NeuronMask(model, probe, skip=skip).sites.values()
        last = [site for site in sites if site.depth == max(other.depth for other in sites)]
        self.layer, local = last[0].owners[0]
        plain = isinstance(self.layer, nn.Linear) or (
            isinstance(self.layer, _ConvNd) and not isinstance(self.layer, _ConvTransposeNd)
        )
        if not plain or len(last) > 1 or local != "weight":
            raise UnsupportedModel(
                "fine-pruning needs a linear or a plain convolution at the end, but the last layer with weights "
                f"to tune is {last[0].name} in a {type(self.layer).__name__}. Use anp, rnp or nft."
            )
        self.weight = last[0].weight
        self.given = self.weight.detach().clone()
        self.group = self._positions(model, probe) if isinstance(self.layer, nn.Linear) else 1
        self.parts = self.layer.groups if isinstance(self.layer, _ConvNd) else 1
        self.units = self.weight.shape[1] * self.parts // self.group

    @torch.no_grad()
    def activity(self, model: nn.Module, clean: CleanSet, task: Task) -> Tensor:
        """Mean absolute value of each unit over samples and positions, float64 of shape ``(units,)``; streamed."""
        total = torch.zeros(self.units * self.group, dtype=torch.float64, device=self.weight.device)
        count = 0

        def add(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            nonlocal count
            features = args[0] if isinstance(layer, nn.Linear) else args[0].movedim(1, -1)
            rows = features.reshape(-1, features.shape[-1])
            total.add_(rows.abs().double().sum(0))
            count += len(rows)

        hook = self.layer.register_forward_pre_hook(add)
        try:
            for batch in clean.once(500):
                task.forward(model, batch.inputs)
        finally:
            hook.remove()
        mean: Tensor = (total / max(count, 1)).unflatten(0, (self.units, self.group)).mean(1)
        return mean

    @torch.no_grad()
    def keep_(self, keep: Tensor) -> None:
        """Read the given weights again, but 0 where the bool ``keep`` of shape ``(units,)`` is false."""
        self.weight.copy_(self.given)
        self.zero_(~keep)

    @torch.no_grad()
    def zero_(self, pruned: Tensor) -> None:
        """No weight for the units of the bool ``pruned``; after each step too, so that tuning does not revive them."""
        columns = pruned.repeat_interleave(self.group).view(self.parts, -1)  # those that each group of rows reads
        rows = columns.repeat_interleave(self.weight.shape[0] // self.parts, dim=0)
        self.weight.masked_fill_(rows.view(*rows.shape, *[1] * (self.weight.ndim - 2)), 0.0)

    @torch.no_grad()
    def _positions(self, model: nn.Module, probe: Probe) -> int:
        """Columns of one channel where the input is a flattened feature map; 1 where it is none."""
        maps: list[Tensor] = []
        entered: list[Tensor] = []

        def note(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim > 2 and not entered:
                maps.append(output)

        hooks = [module.register_forward_hook(note) for module in model.modules()]
        hooks.append(self.layer.register_forward_pre_hook(lambda layer, args: entered.append(args[0])))
        try:
            probe()
        finally:
            for hook in hooks:
                hook.remove()
        for output in reversed(maps):
            flat = output.flatten(1)
            if entered[0].ndim == 2 and flat.shape == entered[0].shape and torch.equal(flat, entered[0]):
                return math.prod(output.shape[2:])
        return 1


@dataclass(frozen=True, kw_only=True)
class FinePruning(Purifier):
    """Fine-pruning (Liu et al., RAID 2018): prune units that clean samples leave dormant, then fine-tune."""

    name: ClassVar[str] = "fine-pruning"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"steps": 500, "schedule": "constant", "weight_decay": 0.0, "bn": "update", "max_clean_drop": 4.0},
    }

    steps: int = option(200, "optimiser steps of the fine-tuning")
    batch_size: int = option(128, "samples a step")
    lr: float = option(0.01, "peak learning rate of SGD")
    momentum: float = option(0.9, "momentum of SGD")
    weight_decay: float = option(5e-4, "L2 penalty of SGD")
    schedule: Schedule = option("one-cycle", "learning rate over the run: one-cycle, cosine, step or constant")
    bn: Literal["frozen", "update"] = option("frozen", "BatchNorm with its stored statistics, or in train mode")
    prune_step: float = option(0.01, "share of the units by which pruning grows")
    max_clean_drop: float = option(3.0, "points of clean accuracy on the holdout that pruning may cost")
    mixup: float = option(0.0, "MixUp's lambda ~ Beta(mixup, mixup); 0 turns MixUp off")
    skip: str = option("", "weights to leave alone: patterns of their names, with spaces between")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        check_norm_mode(self.bn)
        if not 0 < self.prune_step < 1:
            raise BadOption(f"prune_step is {self.prune_step}; the share of units must lie in (0, 1).")
        check_drop(self.max_clean_drop)

    @property
    def updates_buffers(self) -> bool:
        """BatchNorm's running statistics move with ``bn="update"``."""
        return self.bn == "update"

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        tolerance = AccuracyTolerance.of(model, task, clean, run, self.max_clean_drop)
        probe = partial(task.forward, model, clean.samples[slice(0, 2)].inputs)
        last = LastLayer(model, probe, skip=self.skip.split())
        pruned = self._prune(model, last, last.activity(model, clean, task), tolerance, run)
        train_norms(model, self.updates_buffers)

        def objective(step: int, batch: Batch) -> Tensor:
            fresh = task.augment(batch, run.generator, mix=self.mixup)
            return task.loss(task.forward(model, fresh.inputs), fresh.targets)

        finetune(
            list(FullWeights(model, skip=self.skip.split()).parameters().values()),
            objective,
            clean,
            run,
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            after_step=partial(last.zero_, pruned),
            message="fine-tuning what is left",
        )
        model.eval()

    def _prune(
        self, model: nn.Module, last: LastLayer, activity: Tensor, tolerance: AccuracyTolerance, run: Run
    ) -> Tensor:
        """Prune the most dormant units as long as the tolerance lasts; returns which, bool of shape ``(units,)``."""
        order = activity.argsort(stable=True)
        each = max(1, math.ceil(self.prune_step * last.units))

        def kept(count: float) -> Tensor:
            keep = torch.ones(last.units, dtype=torch.bool, device=order.device)
            keep[order[: int(count)]] = False
            return keep

        levels = range(each, last.units, each)
        count = strongest_within(
            levels, lambda n: last.keep_(kept(n)), tolerance, model, what="pruned units", patience=5
        )
        keep = kept(count or 0)
        last.keep_(keep)
        run.notice(f"pruned {int(count or 0)} of {last.units} units of the last hidden layer before the fine-tuning.")
        return ~keep
