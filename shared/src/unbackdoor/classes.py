"""One class out of several: what every task of that kind shares, whatever its inputs are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.errors import SeveralAnswers
from unbackdoor.labels import check_labels
from unbackdoor.task import Batch, Meter, Task
from unbackdoor.tree import Tree

__all__ = ["Accuracy", "ClassTask", "of_probabilities", "pick_logits"]

_ROUNDING = 1e-3
"""By how much probabilities of half precision may miss 1 together."""


class Accuracy:
    """Share of samples whose largest logit is that of their class (micro average over all samples)."""

    def __init__(self) -> None:
        """Start at no sample."""
        self._right = torch.zeros((), dtype=torch.long)
        self._count = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in logits of shape ``(batch, classes)`` and class indices of shape ``(batch,)``; no synchronisation."""
        self._right = self._right.to(outputs.device) + (outputs.argmax(dim=1) == targets).sum()
        self._count += len(targets)

    def compute(self) -> float:
        """The share, 0 to 1; NaN where no sample was seen."""
        return int(self._right) / self._count if self._count else float("nan")


@dataclass(frozen=True)
class ClassTask(Task):
    """A classifier's task; a package adds ``name``, `augment`, `perturbable` and, where inputs need care, `forward`.

    Targets are class indices, int64 of shape ``(batch,)``; they may also be probabilities of shape ``(batch,
    classes)``, or the triple ``(a, b, lambda)`` that MixUp makes: two class indices and the share of the first.
    """

    def forward(self, model: nn.Module, inputs: Tree) -> Tensor:
        """Logits of shape ``(batch, classes)``, see `pick_logits`."""
        logits: Tensor = pick_logits(model(inputs))
        return logits

    def log_likelihood(self, outputs: Tree, targets: Tree) -> Tensor:
        """``log softmax(z)_y`` for class indices, ``sum_k t_k log softmax(z)_k`` for probabilities.

        For the triple ``(a, b, lambda)`` it is ``lambda * l_a + (1 - lambda) * l_b``: minus the loss of Eq. (4) of NFT.

        Args:
            outputs: Logits of shape ``(batch, classes)``; half precision is raised to float32.
            targets: One of the three forms.

        Returns:
            Float of shape ``(batch,)``.
        """
        logs = _log_softmax(outputs)
        if isinstance(targets, tuple | list):
            first, second, share = targets
            share = share.to(logs.dtype)
            mixed: Tensor = share * _at(logs, first) + (1 - share) * _at(logs, second)
            return mixed
        if targets.is_floating_point():
            expected: Tensor = targets.to(logs.dtype) * logs
            return expected.sum(dim=1)
        return _at(logs, targets)

    def as_logits(self, outputs: Tree) -> Callable[[Tensor], Tensor] | None:
        """See `of_probabilities`."""
        return of_probabilities(outputs)

    def imitate(self, reference: Tree, targets: Tree, kept: Tensor) -> Tensor:
        """Probabilities ``(batch, classes)``: the labels' share for kept, the softmax for the rest of it."""
        shares = _shares(targets, likely := _log_softmax(reference).exp())
        trusted = torch.where(kept, 0.0, likely)
        total = trusted.sum(dim=1, keepdim=True)
        rest = torch.where(kept, 0.0, shares).sum(dim=1, keepdim=True)
        tiny = torch.finfo(likely.dtype).tiny
        soft = torch.where(kept, shares, trusted / total.clamp(min=tiny) * rest)
        return torch.where(total > 0, soft, shares)

    def meters(self) -> Mapping[str, Meter]:
        """Accuracy over all samples."""
        return {"accuracy": Accuracy()}

    def correct(self, outputs: Tree, targets: Tree) -> Tensor:
        """Whether the largest logit is that of the class: bool of shape ``(batch,)``."""
        answers: Tensor = outputs.argmax(dim=1)
        return answers == _classes(targets)

    def inspect(self, clean: Batch, outputs: Tree) -> list[str]:
        """Refuse labels that do not fit the model; tell of missing classes.

        Raises:
            BadData: See `unbackdoor.labels.check_labels`.
        """
        return check_labels(clean, outputs)

    def samples_per_class(self, targets: Tree) -> float:
        """Number of samples divided by the number of classes that occur."""
        classes = _classes(targets)
        return len(classes) / len(torch.unique(classes))

    def strata(self, targets: Tree) -> Tensor:
        """The classes themselves: a split keeps their proportions."""
        return _classes(targets)


def of_probabilities(outputs: Tree) -> Callable[[Tensor], Tensor] | None:
    """The logarithm, for outputs none of which is negative and that add up to 1 for each sample; else None."""
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
        return None
    likely = outputs.detach().double()
    told = bool((likely >= 0).all()) and bool(((likely.sum(1) - 1).abs() < _ROUNDING).all())
    return _logarithm if told else None


def pick_logits(answer: Any, *, ndim: int = 2) -> Any:
    """The logits of a plain answer, a dictionary, an output object, or a tuple of which one tensor can be meant.

    Logits of one class say nothing: a tensor with a single column is not meant where another has more.

    Args:
        answer: What a model gave.
        ndim: Dimensions of logits.

    Raises:
        SeveralAnswers: Nothing is called logits, and several tensors have the form of logits.
    """
    if isinstance(answer, Mapping) and "logits" in answer:
        return answer["logits"]
    if isinstance(getattr(answer, "logits", None), Tensor):
        return answer.logits
    if not isinstance(answer, Mapping | tuple | list):
        return answer
    entries = list(answer.items() if isinstance(answer, Mapping) else enumerate(answer))
    tensors = {place: value for place, value in entries if isinstance(value, Tensor) and value.is_floating_point()}
    fitting = {place: value for place, value in tensors.items() if value.ndim == ndim}
    fitting = {place: value for place, value in fitting.items() if value.shape[-1] > 1} or fitting
    if len(fitting) > 1:
        raise SeveralAnswers({place: tuple(value.shape) for place, value in fitting.items()})
    return next(iter(fitting.values()), next(iter(tensors.values()), answer))


def _logarithm(likely: Tensor) -> Tensor:
    return likely.clamp(min=torch.finfo(likely.dtype).tiny).log()


def _log_softmax(logits: Tensor) -> Tensor:
    half = logits.dtype in (torch.float16, torch.bfloat16)
    return (logits.float() if half else logits).log_softmax(dim=1)


def _shares(targets: Tree, like: Tensor) -> Tensor:
    """The targets in any of their three forms as probabilities of the shape of ``like``."""
    if isinstance(targets, tuple | list):
        first, second, share = targets
        share = share.to(like.dtype).unsqueeze(1)
        mixed: Tensor = share * _shares(first, like) + (1 - share) * _shares(second, like)
        return mixed
    given: Tensor = targets
    if given.is_floating_point():
        return given.to(like.dtype)
    return torch.zeros_like(like).scatter(1, given.long().unsqueeze(1), 1.0)


def _at(logs: Tensor, classes: Tensor) -> Tensor:
    return logs.gather(1, classes.long().unsqueeze(1)).squeeze(1)


def _classes(targets: Any) -> Tensor:
    if isinstance(targets, tuple | list):
        first, second, share = targets
        return torch.where(share >= 0.5, first, second)
    classes: Tensor = targets.argmax(dim=1) if targets.is_floating_point() and targets.ndim == 2 else targets.long()
    return classes
