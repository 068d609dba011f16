"""Exact tests of counts, so that what is said of a model from few samples holds at a stated level."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["at_least", "at_most", "better", "drop_interval", "interval"]

_RESAMPLES = 2000
_NORMAL_95 = 1.959963984540054


def at_least(count: int, total: int, share: float) -> float:
    """Probability of ``count`` successes or more in ``total`` trials that succeed with probability ``share`` each."""
    return _sum(range(max(count, 0), total + 1), total, share)


def at_most(count: int, total: int, share: float) -> float:
    """Probability of ``count`` successes or fewer."""
    return _sum(range(min(count, total) + 1), total, share)


def better(wins: int, losses: int) -> float:
    """One-sided exact McNemar test: how likely so many wins are where wins and losses are equally likely.

    Args:
        wins: Samples that the second of two answers the better.
        losses: Samples that the first does.
    """
    return at_least(wins, wins + losses, 0.5)


def interval(right: float, total: int) -> tuple[float, float]:
    """Wilson's interval of a share at 95 %, in percent; 0 to 100 where there are no samples."""
    if total == 0:
        return 0.0, 100.0
    share, square = right / total, _NORMAL_95**2 / total
    centre = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    low, high = (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)
    return 100 * max(0.0, low), 100 * min(1.0, high)


def drop_interval(before: Tensor, after: Tensor, groups: Tensor | None = None) -> tuple[float, float]:
    """Interval of at least 95 % of a loss of accuracy over pairs, in percentage points; a gain is negative.

    Right and wrong answers: exact, from what share of samples was lost and what share was gained, each with a
    Clopper-Pearson interval of 97.5 % (Bonferroni), so that unchanged answers on few samples give a wide one. Degrees,
    and samples that are near copies: a bootstrap over pairs, or over groups.

    Args:
        before: Which samples one model answers rightly, or how well in [0, 1], of shape ``(n,)``.
        after: The same of the other.
        groups: Samples of one number are near copies, of shape ``(n,)``.
    """
    difference = (before.double() - after.double()).cpu()
    count = len(difference)
    if count == 0:
        return -100.0, 100.0
    if groups is None and bool((difference == difference.round()).all()):
        (lost_low, lost_high), (gained_low, gained_high) = (
            _clopper_pearson(int((difference == sign).sum()), count, 0.025) for sign in (1, -1)
        )
        return 100 * (lost_low - gained_high), 100 * (lost_high - gained_low)
    number = torch.arange(count) if groups is None else groups.unique(return_inverse=True)[1]
    sums = torch.zeros(int(number.max()) + 1, dtype=torch.float64).index_add_(0, number, difference)
    sizes = number.bincount().double()
    drawn = torch.randint(len(sums), (_RESAMPLES, len(sums)), generator=torch.Generator().manual_seed(0))
    means = 100 * sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _clopper_pearson(count: int, total: int, level: float) -> tuple[float, float]:
    """The exact interval of a share that is missed with probability ``level`` at most."""

    def solve(tail: Callable[[float], float], rising: bool) -> float:
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            if (tail(middle) < level / 2) == rising:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    lower = 0.0 if count == 0 else solve(lambda share: at_least(count, total, share), True)
    upper = 1.0 if count == total else solve(lambda share: at_most(count, total, share), False)
    return lower, upper


def _sum(counts: range, total: int, share: float) -> float:
    if share <= 0 or share >= 1:
        return float((0 if share <= 0 else total) in counts)
    yes, no = math.log(share), math.log1p(-share)
    whole = math.lgamma(total + 1)
    terms = (whole - math.lgamma(k + 1) - math.lgamma(total - k + 1) + k * yes + (total - k) * no for k in counts)
    return min(1.0, math.fsum(math.exp(term) for term in terms))
