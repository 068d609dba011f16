"""Exact tests of counts, so that what is said of a model from few samples holds at a stated level."""

from __future__ import annotations

import math

__all__ = ["at_least", "at_most", "better", "interval"]

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
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def _sum(counts: range, total: int, share: float) -> float:
    if share <= 0 or share >= 1:
        return float((0 if share <= 0 else total) in counts)
    yes, no = math.log(share), math.log1p(-share)
    whole = math.lgamma(total + 1)
    terms = (whole - math.lgamma(k + 1) - math.lgamma(total - k + 1) + k * yes + (total - k) * no for k in counts)
    return min(1.0, math.fsum(math.exp(term) for term in terms))
