"""How a model stands on some samples: which of them it answers right, and whether it knows more than no input tells."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.preflight.significance import at_least, at_most
from unbackdoor.measure import evaluating
from unbackdoor.task import Batch, Task
from unbackdoor.tree import Tree

__all__ = ["Standing", "one_class", "standing"]

LEVEL = 0.05
"""Of the test that a model is better than knowing no input."""

_SURE = 0.001
_QUARTER = 0.25


@dataclass(frozen=True)
class Standing:
    """One model on some samples; all tensors on the CPU.

    Attributes:
        scores: Log-likelihood of each target, float64.
        logits: What the model answered, ``(samples, classes)``, where it answers with one class a sample; else None.
        targets: Their classes, where it does.
        wins: Which samples it gets right; where it does not answer with one class, on which its log-likelihood is above
            that of the best guess without any input. None where the task knows no such guess.
        chance: How often that happens to a model that does not look: the share of the most frequent class, or a half.
        constant: The class that it would answer always.
    """

    scores: Tensor
    logits: Tensor | None
    targets: Tensor | None
    wins: Tensor | None
    chance: float
    constant: int | None

    def part(self, index: Tensor) -> Standing:
        """The same for the samples at the positions ``index`` alone."""
        return _standing(
            self.scores[index],
            None if self.logits is None else self.logits[index],
            None if self.targets is None else self.targets[index],
            None if self.wins is None else self.wins[index],
        )

    @property
    def accuracy(self) -> float:
        """Share of right answers in percent; NaN without classes."""
        return math.nan if self.logits is None or self.wins is None else float(100 * self.wins.double().mean())

    @property
    def count(self) -> int:
        """How many samples are won."""
        return 0 if self.wins is None else int(self.wins.sum())

    @property
    def confidence(self) -> float | None:
        """What share of its answers the model itself expects to be right; None without classes."""
        return None if self.logits is None else float(self.logits.double().softmax(1).amax(1).mean())

    @property
    def telling(self) -> bool:
        """Whether the samples could tell a perfect model from one that does not look, at `LEVEL`."""
        return self.wins is None or at_least(len(self.wins), len(self.wins), self.chance) <= LEVEL

    @property
    def above_chance(self) -> bool:
        """Whether the model is better than one that does not look, at `LEVEL`."""
        return self.wins is not None and at_least(self.count, len(self.wins), self.chance) <= LEVEL

    @property
    def at_chance(self) -> bool:
        """Whether it is not better, and samples are many enough to rule out that it is better by a quarter of the way.

        Both kinds of error are bounded, so too few samples never say that a model is at chance: a model that wins a
        share of ``chance + (1 - chance) / 4`` is called so with a probability of at most 0.1 %.
        """
        if self.wins is None or self.above_chance or not self.telling:
            return False
        return at_most(self.count, len(self.wins), self.chance + _QUARTER * (1 - self.chance)) <= _SURE


@torch.no_grad()
def standing(model: nn.Module, samples: Batch, task: Task, *, batch_size: int = 500) -> Standing:
    """Where ``model`` stands on ``samples``, with one forward pass over them."""
    with evaluating(model):
        scores, logits = zip(*_answers(model, samples, task, batch_size), strict=True)
    found = torch.cat(scores)
    if all(part is not None for part in logits):
        answers = torch.cat([part for part in logits if part is not None])
        return _standing(found, answers, samples.targets.cpu().long(), None)
    blind = task.uninformed(samples.targets)
    return _standing(found, None, None, None if blind is None else found > blind.double().cpu())


def _standing(scores: Tensor, logits: Tensor | None, targets: Tensor | None, wins: Tensor | None) -> Standing:
    if logits is None or targets is None:
        return Standing(scores, None, None, wins, 0.5, None)
    classes, counts = targets.unique(return_counts=True)
    most = int(counts.argmax())
    chance = int(counts[most]) / len(targets)
    return Standing(scores, logits, targets, logits.argmax(1) == targets, chance, int(classes[most]))


def _answers(model: nn.Module, samples: Batch, task: Task, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    device = next(iter(model.parameters())).device
    for batch in CleanSet(samples).once(size):
        moved = batch.to(device)
        outputs = task.forward(model, moved.inputs)
        scores = task.log_likelihood(outputs, moved.targets).double().cpu()
        yield scores, outputs.float().cpu() if one_class(outputs, moved.targets, task) else None


def one_class(outputs: Tree, targets: Tree, task: Task) -> bool:
    """Whether outputs are logits ``(batch, classes)`` of the task's own likelihood, and targets class indices."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return False
    if outputs.ndim != 2 or targets.ndim != 1 or targets.is_floating_point():
        return False
    first = targets[: len(outputs)]
    likely = outputs.float().log_softmax(1).gather(1, first.long().unsqueeze(1)).squeeze(1)
    return torch.allclose(likely, task.log_likelihood(outputs, first).float(), rtol=1e-3, atol=1e-3, equal_nan=True)
