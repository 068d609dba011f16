"""Which of a model's outputs are the logits, and whether they are logits at all: settled by the labels, once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unbackdoor.classes import pick_logits
from unbackdoor.errors import SeveralAnswers, SingleClass, UnbackdoorError
from unbackdoor.network.calling import Guard, guarded
from unbackdoor.task import Batch, Task

__all__ = ["answered"]

_SAMPLES = 256
_ALIKE = 1e-4


@contextmanager
def answered(model: nn.Module, task: Task, samples: Batch) -> Iterator[list[str]]:
    """Inside, ``model`` answers with logits: one output of several, and logarithms where it gives probabilities.

    Of several outputs the one is taken under which the labels are most likely, if that is beyond chance.

    Args:
        model: In eval mode.
        task: Says how likely labels are, and what turns outputs into logits.
        samples: With their labels; the first few hundred are looked at.

    Yields:
        What a user should know.

    Raises:
        SeveralAnswers: The labels do not tell which output it is.
    """
    with guarded(model) as guard:
        if guard.answered:
            yield []
            return
        hooks: list[RemovableHandle] = []
        guard.answered = True
        try:
            yield _settle(model, task, samples[slice(0, min(len(samples), _SAMPLES))], guard, hooks)
        finally:
            guard.answered = False
            for hook in hooks:
                hook.remove()


@torch.no_grad()
def _settle(model: nn.Module, task: Task, some: Batch, guard: Guard, hooks: list[RemovableHandle]) -> list[str]:
    ask = partial(task.forward, model, some.inputs)
    notices: list[str] = []
    try:
        outputs = ask()
    except SeveralAnswers as error:
        place = _likeliest(model, task, some, guard, error)
        hooks.append(_put(model, guard, partial(_pick, place)))
        outputs = ask()
        notices.append(
            f"the model gives several outputs; {place!r}, of shape {error.candidates[place]}, was taken for the "
            "logits, since the labels are most likely under it."
        )
    except Exception:  # noqa: BLE001 - what is wrong with the model or its inputs is told where they are checked
        return []
    change = task.as_logits(outputs)
    if change is None or not isinstance(outputs, Tensor):
        return notices
    hook = _put(model, guard, partial(_changed, change))
    if torch.equal(ask(), change(outputs)):
        hooks.append(hook)
        notices.append("the model gives probabilities; their logarithms were taken for the logits they stand for.")
    else:
        hook.remove()  # the task does more with outputs than to take them as they are
    return notices


def _likeliest(model: nn.Module, task: Task, some: Batch, guard: Guard, error: SeveralAnswers) -> Any:
    scores: dict[Any, Tensor] = {}
    for place in error.candidates:
        hook = _put(model, guard, partial(_pick, place))
        try:
            outputs = task.forward(model, some.inputs)
            change = task.as_logits(outputs)
            outputs = outputs if change is None else change(outputs)
            if _fits(task, some, outputs):
                scores[place] = task.log_likelihood(outputs, some.targets).double()
        finally:
            hook.remove()
    ranked = sorted(scores, key=lambda place: -float(scores[place].mean()))
    if ranked and all(_clear(scores[ranked[0]] - scores[other]) for other in ranked[1:]):
        return ranked[0]
    raise error


def _fits(task: Task, some: Batch, outputs: Any) -> bool:
    try:
        task.inspect(some, outputs)
    except SingleClass:
        return True
    except UnbackdoorError:
        return False
    return True


def _clear(difference: Tensor) -> bool:
    """Whether one output is above another by twice the standard error, or they say the same."""
    if float(difference.abs().max()) <= _ALIKE:
        return True
    if len(difference) < 2:
        return False
    error = float(difference.std()) / math.sqrt(len(difference))
    return float(difference.mean()) > 2 * error


def _put(model: nn.Module, guard: Guard, change: Callable[[Any], Any]) -> RemovableHandle:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return change(output) if guard.active else None

    return model.register_forward_hook(hook)


def _pick(place: Any, output: Any) -> Any:
    if isinstance(output, Mapping):
        return output.get(place, output)
    if isinstance(output, tuple | list) and isinstance(place, int) and place < len(output):
        return output[place]
    return output


def _changed(change: Callable[[Tensor], Tensor], output: Any) -> Any:
    found = pick_logits(output)
    return change(found) if isinstance(found, Tensor) else output
