"""What a demonstration shows: samples without and with the trigger, and what each model answers to both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from unbackdoor.attacker.attack import Attack
from unbackdoor.measure import evaluating
from unbackdoor.task import Batch, Task
from unbackdoor.tree import Tree, leaves, tree_map

__all__ = ["ATTACKED", "FAINT", "INK", "OTHER", "RIGHT", "Shown", "ask", "one_of_each_class"]

RIGHT, ATTACKED, OTHER = "#1a7f37", "#cf222e", "#9a6700"
"""Colours of an answer that is right, of one that the attacker wants, and of any other."""

INK, FAINT = "#1f2328", "#656d76"
"""Colours of what is read first, and of names beside it."""


@dataclass(frozen=True)
class Shown:
    """Samples side by side.

    Attributes:
        samples: As they are.
        triggered: Their inputs with the trigger on.
        answers: For each model's name what `Task.predict` gives for both, on the CPU.
    """

    samples: Batch
    triggered: Tree
    answers: Mapping[str, tuple[Tree, Tree]]


@torch.no_grad()
def ask(samples: Batch, attack: Attack, models: Mapping[str, nn.Module], task: Task) -> Shown:
    """Put the trigger on ``samples``, drawn by a generator of seed 0, and ask every model for both.

    Each model is asked on its own device, in eval mode; its mode is left as it was.
    """
    triggered = attack.trigger(samples.inputs, torch.Generator().manual_seed(0))
    answers = {}
    for name, model in models.items():
        device = next(model.parameters()).device
        with evaluating(model):
            answers[name] = (
                _answer(model, samples.inputs, task, device),
                _answer(model, triggered, task, device),
            )
    return Shown(samples, triggered, answers)


def one_of_each_class(samples: Batch, attack: Attack, count: int) -> Batch:
    """Up to ``count`` samples that the attack counts, the first of each class in turn, so that classes differ.

    Args:
        samples: Targets are class indices, int64 of shape ``(n,)``.
        attack: See `Attack.counts`.
        count: Fewer come back where fewer are counted.
    """
    able = attack.counts(samples.targets).nonzero().flatten().tolist()
    queues: dict[int, list[int]] = {}
    for place in able:
        queues.setdefault(int(samples.targets[place]), []).append(place)
    chosen: list[int] = []
    turn = 0
    while len(chosen) < min(count, len(able)):
        chosen += [queue[turn] for _, queue in sorted(queues.items()) if turn < len(queue)]
        turn += 1
    return samples[torch.tensor(chosen[:count], dtype=torch.long, device=leaves(samples.targets)[0].device)]


def _answer(model: nn.Module, inputs: Tree, task: Task, device: torch.device) -> Tree:
    moved = tree_map(lambda t: t.to(device), inputs)
    return tree_map(lambda t: t.cpu(), task.predict(model, moved))
