"""The usual wrong readings of clean samples, tried one by one: which fits the labels better beyond doubt."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor.class_lists import in_list
from unbackdoor.label_order import Order, orders
from unbackdoor.significance import at_most, better
from unbackdoor.standing import Standing, standing
from unbackdoor.task import Batch, Reading, Task

__all__ = ["far_below", "misreading"]

LEVEL = 0.001
"""Of the exact paired test that another reading is better, divided by the number of those that are tried."""

_SAMPLES, _FIRST, _KEPT = 256, 64, 6
_PROMISING = 0.05
_HARDLY = 0.75
_NAMED = 20


@dataclass(frozen=True)
class _Tried:
    """One reading of inputs and labels: which samples the model then wins, and its mean log-likelihood."""

    wins: Tensor
    score: float
    rank: int
    reading: Reading | None = None
    order: Order | None = None


def misreading(given: Standing, model: nn.Module, clean: Batch, task: Task) -> str | None:
    """What to say of the reading that fits the labels beyond doubt better than the present one; None without one.

    Args:
        given: The model on the clean samples.
        model: The model itself.
        clean: The samples.
        task: As they are read now; its `Task.readings` are tried.
    """
    places = _spread(len(clean), _SAMPLES)
    base, batch = given.part(places), clean[places]
    if base.wins is None:
        return None
    hardly = not base.above_chance or far_below(base, _HARDLY * (base.confidence or 0.0))
    readings = [reading for reading in task.readings(batch) if hardly or not reading.rare]
    first = _spread(len(batch), _FIRST)
    looked = list(_looked(readings, model, batch[first]))
    whole = list(_looked(_hopeful(looked, base.part(first)), model, batch))
    tried = [
        _Tried(now.wins, float(now.scores.mean()), 1 + one.rare, one) for one, now in whole if now.wins is not None
    ]
    tried += _relabelled(base, clean, None)
    count = len(readings) + len(tried)
    sure = [one for one in tried if better(*_changes(base.wins, one.wins)) <= LEVEL / count]
    if not sure and hardly:
        both = [one for reading, now in looked for one in _relabelled(now, clean, reading)]
        count += len(both)
        best = sorted(both, key=lambda one: -int(one.wins.sum()))[:_KEPT]
        again = _looked([one.reading for one in best if one.reading is not None], model, batch)
        tried = [one for reading, now in again for one in _relabelled(now, clean, reading)]
        sure = [one for one in tried if better(*_changes(base.wins, one.wins)) <= LEVEL / count]
    return _said(base, _simplest(sure), clean) if sure else None


def far_below(of: Standing, share: float) -> bool:
    """Whether it is beyond doubt that the model wins less than ``share`` of such samples."""
    return of.wins is not None and at_most(of.count, len(of.wins), share) <= LEVEL


def _spread(total: int, wanted: int) -> Tensor:
    """``wanted`` places of ``total``, evenly spaced, so that samples sorted by class are of all classes."""
    count = min(total, wanted)
    return torch.arange(count) * total // count


def _looked(readings: list[Reading], model: nn.Module, batch: Batch) -> Iterator[tuple[Reading, Standing]]:
    for reading in readings:
        try:
            yield reading, standing(model, reading.change(batch), reading.task, batch_size=_FIRST)
        except Exception:  # noqa: BLE001, S112 - a model that cannot read the samples so was not meant to
            continue


def _hopeful(looked: list[tuple[Reading, Standing]], base: Standing) -> list[Reading]:
    """The readings that look better on the first samples, the best first."""
    found = [
        (int(now.wins.sum()), float(now.scores.mean()), place)
        for place, (_, now) in enumerate(looked)
        if now.wins is not None and base.wins is not None and better(*_changes(base.wins, now.wins)) <= _PROMISING
    ]
    return [looked[place][0] for _, _, place in sorted(found, reverse=True)[:_KEPT]]


def _relabelled(now: Standing, clean: Batch, reading: Reading | None) -> list[_Tried]:
    """With each other meaning of the labels."""
    if now.logits is None or now.targets is None:
        return []
    found = orders(now.logits.argmax(1), now.targets, now.logits.shape[1], clean.classes)
    return [_Tried(order.wins, 0.0, 0 if reading is None else 3, reading, order) for order in found]


def _changes(before: Tensor, after: Tensor) -> tuple[int, int]:
    return int((after & ~before).sum()), int((before & ~after).sum())


def _simplest(sure: list[_Tried]) -> _Tried:
    """Of the readings that none of the others beats, the simplest, and of these the likeliest."""
    most = max(sure, key=lambda one: int(one.wins.sum()))
    near = [one for one in sure if better(*_changes(one.wins, most.wins)) > _PROMISING]
    rank = min(one.rank for one in near)
    return max((one for one in near if one.rank == rank), key=lambda one: one.score)


def _said(base: Standing, best: _Tried, clean: Batch) -> str:
    wins = int(best.wins.sum())
    what = "is right on" if base.logits is not None else "beats a guess that sees no input on"
    start = (
        f"the given model {what} {base.count} of {len(best.wins)} clean samples as they are read, but {what} {wins} "
    )
    parts = [] if best.reading is None else [f"with {best.reading.advice}"]
    if best.order is not None and base.logits is not None:
        parts.append(_meant(best.order, base.logits.shape[1], clean))
    return start + " and ".join(parts)


def _meant(order: Order, outputs: int, clean: Batch) -> str:
    """The meaning of the labels in words, and the option that gives it."""
    places = order.places.tolist()
    names: dict[int, str] = {}
    if clean.classes is not None and len(clean.classes) == len(places):
        names = dict(zip(places, clean.classes, strict=True))
    missing = [output for output in range(outputs) if output not in places]
    known = in_list(clean.classes or ())
    if missing and known is not None and len(known[1]) == outputs:
        names |= {output: known[1][output] for output in missing if places == [known[1].index(n) for n in known[0]]}
    listed = ",".join(names[output] for output in sorted(names))
    whole = len(names) == outputs <= _NAMED
    advice = f"--data-option {shlex.quote(f'classes={listed}')}" if whole else "--data-option classes=... (all of them)"
    if order.kind in ("text", "number"):
        return f"if classes whose names are numbers are sorted as {order.kind}: --data-option order={order.kind}"
    if order.kind == "lower":
        return "if labels count from 1: subtract 1 from each"
    if order.kind in ("gap", "list") and missing:
        return f"if {_gap(missing, names, places, clean)}: name the classes of all outputs in their order, {advice}"
    how = {"list": "in the order of a well-known data set", "sorted": "in alphabetical order"}
    return f"if the classes are {how.get(order.kind, 'in another order')}: {advice}"


def _gap(missing: list[int], names: dict[int, str], places: list[int], clean: Batch) -> str:
    """Which classes have no samples: by name where it is known, else between which others they lie."""
    said = []
    for output in missing[:_NAMED]:
        if output in names:
            said.append(f"{names[output]!r} (output {output})")
            continue
        below = [names[place] for place in places if place < output and place in names][-1:]
        above = [names[place] for place in places if place > output and place in names][:1]
        beside = " and ".join([*(f"after {name!r}" for name in below), *(f"before {name!r}" for name in above)])
        said.append(f"output {output}" + (f" ({beside})" if beside else ""))
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    verb = "is" if len(missing) == 1 else "are"
    return f"{', '.join(said)}{more} {verb} missing among the classes"
