"""Which outputs of a model the labels of clean samples seem to mean, where they do not mean what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from unbackdoor.files.class_lists import in_list

__all__ = ["Order", "orders"]


@dataclass(frozen=True)
class Order:
    """Another meaning of labels.

    Attributes:
        kind: ``"list"`` (of a well-known data set), ``"gap"`` (classes are missing in between, so that what follows is
            moved up), ``"text"`` or ``"number"`` (how numbers are sorted), ``"sorted"`` (by name), ``"lower"`` (labels
            are one too high) or ``"any"``.
        places: The output that each label means, int64 of shape ``(labels,)``.
        wins: Which samples the model then answers right; where `places` were fitted, by those of the other half.
    """

    kind: str
    places: Tensor
    wins: Tensor


def orders(answers: Tensor, labels: Tensor, outputs: int, classes: tuple[str, ...] | None) -> Iterator[Order]:
    """Other meanings of ``labels``, the simplest first.

    Args:
        answers: The class that a model gives each sample, int64 of shape ``(samples,)``.
        labels: Of the samples, of the same form.
        outputs: How many classes the model has.
        classes: Names of the labels, where they are known.
    """
    count = len(classes) if classes is not None else int(labels.max()) + 1
    if count > outputs or count < 2:
        return
    plain = torch.arange(count)
    seen = [plain]
    for kind, places in _known(count, outputs, classes):
        if not any(torch.equal(places, other) for other in seen):
            seen.append(places)
            yield Order(kind, places, answers == places[labels])
    if int(labels.min()) > 0:
        yield Order("lower", plain - 1, answers == labels - 1)
    fits: list[tuple[str, Callable[[Tensor], Tensor]]] = [("gap", _increasing), ("any", _matched)]
    for kind, fit in fits[int(count == outputs) :]:
        counts = _counts(answers, labels, count, outputs)
        places = fit(counts)
        if not torch.equal(places, plain):
            yield Order(kind, places, _cross_fitted(answers, labels, count, outputs, fit))


def _known(count: int, outputs: int, classes: tuple[str, ...] | None) -> Iterator[tuple[str, Tensor]]:
    if classes is not None and not all(name.isdecimal() for name in classes):
        found = in_list(classes)
        if found is not None and len(found[1]) == outputs:
            yield "list", torch.tensor([found[1].index(name) for name in found[0]])
        for key in (str, str.lower):
            ordered = sorted(classes, key=key)
            yield "sorted", torch.tensor([ordered.index(name) for name in classes])
    as_text = torch.tensor(sorted(range(count), key=str))
    yield "number", as_text
    yield "text", as_text.argsort()


def _counts(answers: Tensor, labels: Tensor, count: int, outputs: int) -> Tensor:
    return torch.bincount(labels * outputs + answers, minlength=count * outputs).view(count, outputs)


def _cross_fitted(answers: Tensor, labels: Tensor, count: int, outputs: int, fit: Callable[[Tensor], Tensor]) -> Tensor:
    """Wins of each half of the samples, class by class, by the order that fits the other half."""
    sorted_by_label = labels.argsort(stable=True)
    first = torch.zeros(len(labels), dtype=torch.bool)
    first[sorted_by_label[::2]] = True
    wins = torch.zeros(len(labels), dtype=torch.bool)
    for half in (first, ~first):
        places = fit(_counts(answers[half], labels[half], count, outputs))
        wins[~half] = answers[~half] == places[labels[~half]]
    return wins


def _increasing(counts: Tensor) -> Tensor:
    """The strictly increasing places that most answers agree with; of equal ones those that move labels least."""
    labels, outputs = counts.shape
    counts = counts * (labels * outputs + 1) - torch.arange(outputs)  # a move weighs less than any answer
    best = torch.full((labels, outputs), torch.iinfo(torch.long).min // 2, dtype=torch.long)
    before = torch.zeros((labels, outputs), dtype=torch.long)
    for label in range(labels):
        room = slice(label, outputs - (labels - 1 - label))
        if label == 0:
            best[0, room] = counts[0, room]
            continue
        value, place = best[label - 1].cummax(0)
        best[label, room] = counts[label, room] + value[label - 1 : outputs - (labels - label)]
        before[label, room] = place[label - 1 : outputs - (labels - label)]
    places = torch.zeros(labels, dtype=torch.long)
    places[-1] = best[-1].argmax()
    for label in range(labels - 1, 0, -1):
        places[label - 1] = before[label, places[label]]
    return places


def _matched(counts: Tensor) -> Tensor:
    """Each label at an output of its own, the pairs of label and answer that occur most often first."""
    labels, outputs = counts.shape
    places = torch.full((labels,), -1, dtype=torch.long)
    free = torch.ones(outputs, dtype=torch.bool)
    values, flat = counts.flatten().sort(descending=True, stable=True)
    for cell in flat[values > 0].tolist():
        label, output = divmod(cell, outputs)
        if places[label] < 0 and free[output]:
            places[label] = output
            free[output] = False
    rest = (places < 0).nonzero().flatten()
    left = free.nonzero().flatten().tolist()
    for label in rest.tolist():
        own = label if label in left else left[0]
        left.remove(own)
        places[label] = own
    return places
