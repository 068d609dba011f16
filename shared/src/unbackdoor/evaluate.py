"""Figures of a model, in percent: clean metrics, attack success rate and label correction rate."""

from __future__ import annotations

import torch
from torch import nn

from unbackdoor.attack import Attack
from unbackdoor.data import CleanSet
from unbackdoor.measure import clean_metrics, evaluating, percent
from unbackdoor.task import Batch, Task

__all__ = ["attack_metrics", "evaluate"]


def evaluate(
    model: nn.Module, data: Batch, task: Task, attack: Attack | None = None, *, batch_size: int = 500, seed: int = 0
) -> dict[str, float]:
    """Clean metrics of ``model`` on ``data`` and, with an ``attack``, its ``asr`` and ``lcr``.

    Args:
        model: Any module; its mode and its buffers are left as found.
        data: Test samples.
        task: How to read them.
        attack: Whose trigger to put on.
        batch_size: Samples a forward pass.
        seed: For triggers that are drawn for each sample.

    Returns:
        Percentages by name; the task's headline first.
    """
    figures = clean_metrics(model, data, task, batch_size=batch_size)
    if attack is not None:
        figures |= attack_metrics(model, data, task, attack, batch_size=batch_size, seed=seed)
    return figures


@torch.no_grad()
def attack_metrics(
    model: nn.Module, data: Batch, task: Task, attack: Attack, *, batch_size: int = 500, seed: int = 0
) -> dict[str, float]:
    """``asr``, the share of triggered samples answered as the attacker wants, and ``lcr``, as their label says.

    Both are taken over `Attack.counts`, the samples whose true class is not the wanted one; percent. What
    `Attack.meters` gives follows under its own names.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(iter(model.parameters())).device
    meters = attack.meters()
    wanted = corrected = 0.0
    counted = 0
    with evaluating(model):
        for batch in CleanSet(data).once(batch_size):
            kept = batch[attack.counts(batch.targets)]
            if len(kept) == 0:
                continue
            triggered = Batch(attack.trigger(kept.inputs, generator), kept.targets).to(device)
            outputs = task.predict(model, triggered.inputs)
            wanted += float(attack.succeeded(outputs, triggered.targets).sum())
            corrected += float(task.correct(outputs, triggered.targets).double().sum())
            counted += len(kept)
            for meter in meters.values():
                meter.update(outputs, attack.retarget(triggered.targets))
    share = 100.0 / max(counted, 1)
    further = {name: percent(meter) for name, meter in meters.items()}
    return {"asr": wanted * share, "lcr": corrected * share, **further}
