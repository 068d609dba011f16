"""Pruning whole neurons by a score, as many as the budget of clean accuracy allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from unbackdoor.budget import CleanBudget, strongest_within
from unbackdoor.reparam import NeuronMask

__all__ = ["SHARES", "prune_below", "prune_within"]

SHARES = tuple(i / 200 for i in range(1, 21)) + tuple(i / 100 for i in range(11, 91))
"""Shares of neurons that are tried: each half percent up to 10 %, then each percent up to 90 %."""
_PATIENCE = 10


def prune_within(
    mask: NeuronMask,
    scores: Mapping[str, Tensor],
    budget: CleanBudget,
    model: nn.Module,
    shares: Sequence[float] = SHARES,
) -> float | None:
    """Set the masks of the lowest scores to 0 and all others to 1, as many as the budget allows.

    A share of all neurons of the network is tried after the other. Neurons of one score go together, so a level may
    take more than its share, and levels that take the same neurons are tried once.

    Args:
        mask: Attached to ``model``.
        scores: A score for each neuron, low for those to prune, by site.
        budget: Judges.
        model: The attached model.
        shares: In (0, 1), rising.

    Returns:
        The threshold: neurons with at most this score were pruned; None if none was (a notice says so).
    """
    ranked = torch.cat([score.flatten().double() for score in scores.values()]).sort().values
    thresholds = dict.fromkeys(float(ranked[math.ceil(share * len(ranked)) - 1]) for share in shares)

    def apply(threshold: float) -> None:
        _keep(mask, {name: score.double() > threshold for name, score in scores.items()})

    chosen = strongest_within(thresholds, apply, budget, model, what="threshold", patience=_PATIENCE)
    if chosen is None:
        apply(-math.inf)
    else:
        _tell(mask, budget, chosen)
    return chosen


def prune_below(mask: NeuronMask, scores: Mapping[str, Tensor], threshold: float, budget: CleanBudget) -> None:
    """Set the masks of scores up to ``threshold`` to 0, whatever it costs: the papers' fixed thresholds."""
    _keep(mask, {name: score > threshold for name, score in scores.items()})
    _tell(mask, budget, threshold)


@torch.no_grad()
def _keep(mask: NeuronMask, kept: Mapping[str, Tensor]) -> None:
    for name, value in mask.parameters().items():
        value.copy_(kept[name])


def _tell(mask: NeuronMask, budget: CleanBudget, threshold: float) -> None:
    values = list(mask.parameters().values())
    total, pruned = sum(v.numel() for v in values), sum(int((v == 0).sum()) for v in values)
    which = f"{pruned} of {total} neurons, those of scores up to {threshold:.4g}"
    budget.run.notice(f"pruned {which}." if pruned else f"nothing was pruned: no score is as low as {threshold:.4g}.")
