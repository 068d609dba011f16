"""Figures of a model, in percent: clean metrics, attack success rate and label correction rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from unbackdoor.attacker.attack import Attack
from unbackdoor.data import CleanSet
from unbackdoor.errors import (
    BadData,
    BadOption,
    ForwardFailed,
    NonFinite,
    SingleClass,
    UnsupportedModel,
)
from unbackdoor.measure import clean_metrics, measuring, percent
from unbackdoor.registry import as_task, check_seed
from unbackdoor.task import Batch, Task
from unbackdoor.tree import leaves

__all__ = ["attack_metrics", "evaluate"]

_FIRST = 32
_NAMED = 3


def evaluate(
    model: nn.Module,
    data: Any,
    task: Task | type[Task] | str,
    attack: Attack | None = None,
    *,
    batch_size: int = 500,
    seed: int = 0,
) -> dict[str, float]:
    """Clean metrics of ``model`` on ``data`` and, with an ``attack``, its ``asr`` and ``lcr``.

    Args:
        model: Any module; its mode and its buffers are left as found.
        data: Test samples: a `Batch`, or whatever else `unbackdoor.purify` takes.
        task: How to read them.
        attack: Whose trigger to put on.
        batch_size: Samples a forward pass.
        seed: For triggers that are drawn for each sample.

    Returns:
        Percentages by name; the task's headline first.

    Raises:
        NonFinite: Weights, answers or a metric are NaN, so that no figure would mean anything.
        BadData: Labels do not fit the model's answers, or no sample can show the attack.
        UnbackdoorError: Something else cannot be used; the message says what to do.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"the model is a {type(model).__name__}; give a torch.nn.Module.")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModel(
            "the model is a TorchScript module, which takes no hooks; give the module that it was scripted from, "
            "or torch.nn.Sequential(model)."
        )
    if attack is not None and not isinstance(attack, Attack):
        raise BadOption(f"attack is a {type(attack).__name__}; give an Attack, or leave it out.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise BadOption(f"batch_size is {batch_size!r}; it must be a whole number of at least 1.")
    check_seed(seed)
    samples, problem = CleanSet.of(data).samples, as_task(task)
    _check_weights(model)
    with _answers_checked(model):
        _check_labels(model, samples, problem)
        figures = clean_metrics(model, samples, problem, batch_size=batch_size)
        if attack is not None:
            figures |= attack_metrics(model, samples, problem, attack, batch_size=batch_size, seed=seed)
    _check_figures(figures, len(samples))
    return figures


@torch.no_grad()
def attack_metrics(
    model: nn.Module, data: Batch, task: Task, attack: Attack, *, batch_size: int = 500, seed: int = 0
) -> dict[str, float]:
    """``asr``, the share of triggered samples answered as the attacker wants, and ``lcr``, as their label says.

    Both are taken over `Attack.counts`, the samples whose true class is not the wanted one; percent. What
    `Attack.meters` gives follows under its own names.

    Raises:
        BadData: There is no such sample.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(iter(model.parameters())).device
    meters = attack.meters()
    wanted = corrected = 0.0
    counted = 0
    with measuring(model, task, data):
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
    if counted == 0:
        raise BadData(
            f"none of the {len(data)} samples can show whether the attack {attack.name!r} works: all have the wanted "
            "label already, or are of classes that it leaves alone. Give samples of other classes."
        )
    share = 100.0 / counted
    further = {name: percent(meter) for name, meter in meters.items()}
    return {"asr": wanted * share, "lcr": corrected * share, **further}


def _check_weights(model: nn.Module) -> None:
    """No NaN in what was learned: a comparison with NaN is a figure like any other, often that of class 0."""
    parameters = dict(model.named_parameters())
    if not parameters:
        raise UnsupportedModel("the model has no parameters, so there is nothing to measure.")
    floats = [
        (name, value)
        for name, value in [*parameters.items(), *model.named_buffers()]
        if not is_lazy(value) and (value.is_floating_point() or value.is_complex())
    ]
    broken = [n for n, value in floats if bool((value.isnan() | (value.isinf() if n in parameters else False)).any())]
    if broken:
        more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise NonFinite(
            f"the model's weights hold NaN or infinity ({', '.join(broken[:_NAMED])}{more}), so its answers mean "
            "nothing; the training or the purification that made them broke down. Use another checkpoint."
        )


@contextmanager
def _answers_checked(model: nn.Module) -> Iterator[None]:
    """Inside, an answer of ``model`` that holds NaN or plus infinity ends the measurement.

    Minus infinity is an honest logit: that of a class which the model rules out.
    """

    def look(module: nn.Module, inputs: Any, answer: Any) -> None:
        for leaf in leaves(answer):
            if leaf.is_floating_point() and bool((leaf.isnan() | leaf.isposinf()).any()):
                raise NonFinite(
                    "the model's answers hold NaN or infinity, so no figure would mean anything. Check the range of "
                    "the inputs and their normalisation, or measure in float32."
                )

    handle = model.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _check_labels(model: nn.Module, samples: Batch, task: Task) -> None:
    """What a purification asks of its samples; but samples of one class can be measured."""
    device = next(iter(model.parameters())).device
    first = samples[slice(0, min(len(samples), _FIRST))]
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves(first.inputs))
    try:
        with measuring(model, task, samples):
            outputs = task.predict(model, first.to(device).inputs)
    except ForwardFailed as error:
        raise BadData(
            f"the model cannot take these samples, whose inputs are {shapes}: {error} Read them in the size, channels "
            "and type that the model was trained with."
        ) from error
    answers = {len(leaf) if leaf.ndim else 0 for leaf in leaves(outputs)}
    if answers != {len(first)}:
        raise BadData(
            f"for {len(first)} samples the model gave {' or '.join(map(str, sorted(answers))) or 'no'} answers; its "
            "forward must return one for each sample, in their order."
        )
    try:
        task.inspect(samples, outputs)
    except SingleClass:
        return


def _check_figures(figures: Mapping[str, float], count: int) -> None:
    for name, value in figures.items():
        if not math.isfinite(value):
            raise NonFinite(
                f"the metric {name} is not defined on these {count} samples (it is {value}); give more samples, of "
                "every class that it looks at."
            )
