"""The usual wrong readings of clean samples, tried one by one: which fits the labels better beyond doubt.

The levels were tried on a small network for CIFAR-10 (68 % right). Of 48 sets of 20, 50 or 200 samples that it read
right, as they are, darker, brighter, blurred, noisy, grey, tinted or of half the contrast, none was accused. In a run
without `_GAIN` three sets of 200 were, where another normalisation made up for lost contrast or sharpness.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor.defender.preflight.label_order import Order, orders
from unbackdoor.defender.preflight.significance import at_most, better
from unbackdoor.defender.preflight.standing import Standing, standing
from unbackdoor.files.class_lists import in_list
from unbackdoor.task import Batch, Reading, Task

__all__ = ["far_below", "misreading"]

LEVEL = 0.001
"""Of the exact paired test that another reading is better, divided by the number of those that are tried."""

_SAMPLES, _FIRST, _KEPT = 256, 64, 6
_PROMISING = 0.05
_HARDLY = 0.75
_GAIN = 0.2
_NAMED = 20


@dataclass(frozen=True)
class _Tried:
    """One reading of inputs and labels, and how the model stands with it on the samples at ``places``."""

    places: Tensor
    wins: Tensor
    scores: Tensor
    rank: int
    reading: Reading | None = None
    order: Order | None = None

    @property
    def share(self) -> float:
        return float(self.wins.double().mean())


def misreading(given: Standing, model: nn.Module, clean: Batch, task: Task) -> str | None:
    """What to say of the reading that fits the labels beyond doubt better than the present one; None without one.

    Args:
        given: The model on the clean samples.
        model: The model itself.
        clean: The samples.
        task: As they are read now; its `Task.readings` are tried.
    """
    chosen = _spread(len(clean), _SAMPLES)
    base, batch = given.part(chosen), clean[chosen]
    if base.wins is None:
        return None
    hardly = not base.above_chance or far_below(base, _HARDLY * (base.confidence or 0.0))
    readings = [reading for reading in task.readings(batch) if hardly or not reading.rare]
    as_read = _Tried(torch.arange(len(batch)), base.wins, base.scores, 0)
    if better(len(batch) - base.count, 0) > LEVEL / max(len(readings), 1):
        readings = []  # not even one that made every wrong answer right would be beyond doubt, so none is paid for
    looked = list(_looked(readings, model, batch, _FIRST))
    hopeful = sorted((one for one, _ in looked if _p(as_read, one) <= _PROMISING), key=lambda one: -one.share)
    wanted = {id(one.reading) for one in hopeful[:_KEPT]}
    again = _looked([one for one in readings if id(one) in wanted], model, batch, _SAMPLES)
    tried = [one for one, _ in again] + _relabelled(as_read, base, clean)
    count = len(readings) + len(tried)
    sure = [one for one in tried if _beyond_doubt(as_read, one, count) and _matters(as_read, one)]
    if not sure and hardly:  # inputs and labels may both be misread
        both = [one for first, now in looked for one in _relabelled(first, now, clean)]
        count += len(both)
        best = sorted((one for one in both if _p(as_read, one) <= _PROMISING), key=lambda one: -one.share)[:_KEPT]
        again = _looked([one.reading for one in best if one.reading is not None], model, batch, _SAMPLES)
        tried = [one for first, now in again for one in _relabelled(first, now, clean)]
        sure = [one for one in tried if _beyond_doubt(as_read, one, count)]
    return _said(as_read, _simplest(sure), base, clean) if sure else None


def far_below(of: Standing, share: float) -> bool:
    """Whether it is beyond doubt that the model wins less than ``share`` of such samples."""
    return of.wins is not None and at_most(of.count, len(of.wins), share) <= LEVEL


def _spread(total: int, wanted: int) -> Tensor:
    """``wanted`` places of ``total``, evenly spaced, so that samples sorted by class are of all classes."""
    count = min(total, wanted)
    return torch.arange(count) * total // count


def _looked(readings: list[Reading], model: nn.Module, batch: Batch, most: int) -> Iterator[tuple[_Tried, Standing]]:
    """Each reading that the model takes, on ``most`` of the samples, or fewer where a pass is dear."""
    for reading in readings:
        places = _spread(len(batch), max(most // 4, int(most / reading.cost)))
        try:
            now = standing(model, reading.change(batch[places]), reading.task, batch_size=_FIRST)
        except Exception:  # noqa: BLE001, S112 - a model that cannot read the samples so was not meant to
            continue
        if now.wins is not None:
            yield _Tried(places, now.wins, now.scores, 1 + reading.rare, reading), now


def _relabelled(one: _Tried, now: Standing, clean: Batch) -> list[_Tried]:
    """With each other meaning of the labels."""
    if now.logits is None or now.targets is None:
        return []
    found = orders(now.logits.argmax(1), now.targets, now.logits.shape[1], clean.classes)
    rank = 0 if one.reading is None else 3
    return [_Tried(one.places, order.wins, one.scores, rank, one.reading, order) for order in found]


def _p(before: _Tried, after: _Tried, *, by_score: bool = False) -> float:
    """How likely so many more wins (or higher scores) are by chance, on the samples that both were tried on."""
    first, second = torch.isin(before.places, after.places), torch.isin(after.places, before.places)
    if by_score:
        change = after.scores[second] - before.scores[first]
        return better(int((change > 0).sum()), int((change < 0).sum()))
    was, now = before.wins[first], after.wins[second]
    return better(int((now & ~was).sum()), int((was & ~now).sum()))


def _beyond_doubt(before: _Tried, after: _Tried, count: int) -> bool:
    """Whether one of ``count`` readings is better at `LEVEL`; names of a known data set speak for its own order."""
    known = after.reading is None and after.order is not None and after.order.kind == "list"
    return _p(before, after) <= (_PROMISING if known else LEVEL / count)


def _matters(before: _Tried, after: _Tried) -> bool:
    """Whether a reading of inputs gains 20 points or halves the errors.

    Samples from elsewhere (darker, of less contrast) may be read a little better with another normalisation than with
    the one that a model was trained with; that is no mistake. Other classes are no matter of degree.
    """
    was, now = before.share, after.share
    return after.order is not None or now - was >= _GAIN or 1 - now <= (1 - was) / 2


def _simplest(sure: list[_Tried]) -> _Tried:
    """Of the readings that the best one does not clearly beat the simplest, of these the first that is as likely.

    Normalisations that are nearly alike are told apart by the log-likelihoods of the samples, if by anything.
    """
    most = max(sure, key=lambda one: one.share)
    near = [one for one in sure if _p(one, most) > _PROMISING]
    rank = min(one.rank for one in near)
    near = [one for one in near if one.rank == rank]
    likeliest = max(near, key=lambda one: float(one.scores.mean()))
    if rank == 0:
        return near[0]
    return next(one for one in near if _p(one, likeliest, by_score=True) > _PROMISING)


def _said(as_read: _Tried, best: _Tried, base: Standing, clean: Batch) -> str:
    was, now = (f"{100 * one.share:.0f} %" for one in (as_read, best))
    what = "is right on" if base.logits is not None else "beats a guess that sees no input on"
    parts = [] if best.reading is None else [f"with {best.reading.advice}"]
    if best.order is not None and base.logits is not None:
        parts.append(_meant(best.order, base.logits.shape[1], clean))
    return (
        f"the given model {what} {was} of the clean samples as they are read, but {what} {now} {' and '.join(parts)}. "
        "Give that"
    )


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
