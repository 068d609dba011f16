"""Clean metrics of a model. The defender may use this; nothing here knows of attacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from unbackdoor.data import CleanSet
from unbackdoor.network.answers import answered
from unbackdoor.network.calling import guarded
from unbackdoor.network.signature import buffers_kept
from unbackdoor.task import Batch, Meter, Task

__all__ = ["accuracy_by_group", "clean_metrics", "evaluating", "measuring", "percent"]

_SETTLING = 256


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode inside, each in its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with guarded(model):
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def measuring(model: nn.Module, task: Task, data: Batch) -> Iterator[None]:
    """`evaluating`, with the outputs settled by the labels (`unbackdoor.network.answers`) and all buffers kept."""
    device = next(iter(model.parameters())).device
    few = data[slice(0, min(len(data), _SETTLING))].to(device)
    with buffers_kept(model), evaluating(model), answered(model, task, few):
        yield


@torch.no_grad()
def clean_metrics(model: nn.Module, data: Batch, task: Task, *, batch_size: int = 500) -> dict[str, float]:
    """The task's metrics of ``model`` on ``data``, in percent, the headline first."""
    device = next(iter(model.parameters())).device
    meters = task.meters()
    with measuring(model, task, data):
        for batch in CleanSet(data).once(batch_size):
            moved = batch.to(device)
            outputs = task.predict(model, moved.inputs)
            for meter in meters.values():
                meter.update(outputs, moved.targets)
    return {name: percent(meter) for name, meter in meters.items()}


@torch.no_grad()
def accuracy_by_group(
    model: nn.Module, data: Batch, task: Task, *, batch_size: int = 500
) -> dict[str, tuple[int, float]]:
    """Samples and percentage of right answers in each of `Task.strata`, by its number; empty without strata."""
    groups = task.strata(data.targets)
    if groups is None:
        return {}
    device = next(iter(model.parameters())).device
    with measuring(model, task, data):
        batches = [batch.to(device) for batch in CleanSet(data).once(batch_size)]
        right = torch.cat([task.correct(task.predict(model, b.inputs), b.targets).double().cpu() for b in batches])
    groups = groups.cpu()
    members = {int(group): groups == group for group in groups.unique()}
    return {str(group): (int(of.sum()), float(100 * right[of].mean())) for group, of in members.items()}


def percent(meter: Meter) -> float:
    """The meter's value in percent, or in its own unit where it has a ``scale`` other than 100."""
    return float(getattr(meter, "scale", 100.0)) * float(meter.compute())
