"""Pruning whole neurons by a score, as many as the tolerance of clean accuracy allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbackdoor.defender.reparam import NeuronMask
from unbackdoor.defender.reparam.tracing import Probe
from unbackdoor.defender.tolerance import AccuracyTolerance, strongest_within

__all__ = ["Course", "MaskSite", "neuron_mask", "prune_below", "prune_within"]

MaskSite = Literal["auto", "weight", "norm"]

_SHARES = (*(i / 200 for i in range(1, 21)), *(i / 100 for i in range(11, 91)))  # of all neurons, each one a level
_PATIENCE = 10
_TIE = 1e-6


def neuron_mask(model: nn.Module, probe: Probe, site: MaskSite, skip: Sequence[str]) -> NeuronMask:
    """Masks on all neurons but the answers.

    A neuron whose BatchNorm scale is 0 gives its mean response on training data; one whose weights are 0, before
    BatchNorm with stored statistics, gives what a zero input would, which clean data may never show and which costs
    more accuracy. So ``site="auto"`` masks BatchNorm's scale where the model has any, and weights elsewhere.
    """
    if site == "auto":
        site = "norm" if any(isinstance(m, _BatchNorm) and m.weight is not None for m in model.modules()) else "weight"
    return NeuronMask(model, probe, site=site, skip=skip, head=False)


class Course:
    """What becomes of masks while they are tuned; call it after each step.

    Many masks end at exactly 0, and pruning all of them may cost more than is allowed. Of two equal masks the one that
    came down first counts as lower: the mean over all steps breaks ties, and ties alone.
    """

    def __init__(self, mask: NeuronMask) -> None:
        """Begin with nothing seen."""
        self.mask, self.steps = mask, 0
        self.sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in mask.parameters().items()}

    @torch.no_grad()
    def __call__(self) -> None:
        """Project the masks, then look at them."""
        self.mask.project_()
        self.steps += 1
        for name, value in self.mask.parameters().items():
            self.sums[name] += value

    @torch.no_grad()
    def scores(self) -> dict[str, Tensor]:
        """The masks as they are now, plus a millionth of their mean over all steps: float64."""
        return {
            name: value.double() + _TIE * self.sums[name] / max(self.steps, 1)
            for name, value in self.mask.parameters().items()
        }


@torch.no_grad()
def prune_within(
    mask: NeuronMask,
    scores: Mapping[str, Tensor],
    tolerance: AccuracyTolerance,
    model: nn.Module,
    *,
    below: float = math.inf,
    patience: int = 20,
) -> int:
    """Set the masks of the lowest scores to 0 and all others to 1, as far as the tolerance goes.

    First by a threshold, the largest that is accepted. Where none is, since a neuron that clean samples need
    has one of the lowest scores, neuron after neuron from the lowest up: one that costs too much, with all
    that were pruned before it, stays, and the next is tried.

    Args:
        mask: Attached to ``model``.
        scores: A score for each neuron, low for those to prune, by site.
        tolerance: Judges every neuron by one pass over its samples.
        model: The attached model.
        below: Neurons of this score or more are never pruned: a mask that is still 1 says nothing against its neuron.
        patience: Neuron by neuron, ends after so many, one after another, that had to stay.

    Returns:
        How many neurons were pruned; a notice says it too.

    Raises:
        BeyondTolerance: There are neurons to prune, and each alone costs too much.
    """
    flat = torch.cat([score.flatten().double() for score in scores.values()])
    ranked = flat.sort().values
    places = [math.ceil(share * len(ranked)) - 1 for share in _SHARES]
    levels = [level for level in dict.fromkeys(float(ranked[i]) for i in places) if level < below]

    def apply(threshold: float) -> None:
        for name, value in mask.parameters().items():
            value.copy_(scores[name].double() > threshold)

    chosen = strongest_within(levels, apply, tolerance, model, what="threshold", patience=_PATIENCE)
    if chosen is None:
        return _one_by_one(mask, scores, tolerance, model, flat, below, patience)
    pruned = int((flat <= chosen).sum())
    tolerance.run.notice(f"pruned {pruned} of {len(flat)} neurons, those of scores up to {chosen:.4g}.")
    return pruned


def _one_by_one(
    mask: NeuronMask,
    scores: Mapping[str, Tensor],
    tolerance: AccuracyTolerance,
    model: nn.Module,
    flat: Tensor,
    below: float,
    patience: int,
) -> int:
    values = mask.parameters()
    places = [(name, i) for name, score in scores.items() for i in range(len(score))]
    order = [int(i) for i in flat.argsort(stable=True) if float(flat[i]) < below]
    for value in values.values():
        value.fill_(1.0)
    pruned, stayed, tried, least = 0, 0, 0, None
    for index in order:
        name, neuron = places[index]
        values[name][neuron] = 0.0
        tried += 1
        found = tolerance.judge(model, log=False)
        if found.within:
            pruned, stayed = pruned + 1, 0
            continue
        values[name][neuron] = 1.0
        least = found if least is None or found.drop < least.drop else least
        stayed += 1
        if stayed == patience:
            break
    tolerance.judge(model, pruned=pruned, tried=tried)
    if not pruned and least is not None and not tolerance.run.allow_drop:
        raise tolerance.refusal(least, f"even the neuron that cost least, of {tried} suspicious ones,")
    tolerance.run.notice(
        f"pruned {pruned} of {len(places)} neurons; {tried - pruned} of the {tried} with the lowest scores had to stay."
        if pruned
        else f"nothing was pruned: none of {tried} suspicious neurons was within the tolerance."
    )
    return pruned


@torch.no_grad()
def prune_below(mask: NeuronMask, scores: Mapping[str, Tensor], threshold: float, tolerance: AccuracyTolerance) -> int:
    """Set the masks of scores up to ``threshold`` to 0, whatever it costs: the papers' fixed thresholds."""
    pruned = total = 0
    for name, value in mask.parameters().items():
        keep = scores[name] > threshold + _TIE
        value.copy_(keep)
        pruned, total = pruned + int((~keep).sum()), total + keep.numel()
    which = f"{pruned} of {total} neurons, those of scores up to {threshold:.4g}"
    tolerance.run.notice(
        f"pruned {which}." if pruned else f"nothing was pruned: no score is as low as {threshold:.4g}."
    )
    return pruned
