"""Exact tests against sums of fractions, and Wilson's interval against its defining equation."""

from __future__ import annotations

from fractions import Fraction
from math import comb, sqrt

import pytest

from unbackdoor.defender.preflight.significance import at_least, at_most, better, interval


def exact(counts, total, share):
    share = Fraction(share)
    return float(sum(comb(total, k) * share**k * (1 - share) ** (total - k) for k in counts))


@pytest.mark.parametrize("total", [1, 7, 40])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.75, 1.0])
def test_tails_are_those_of_the_binomial_distribution(total, share):
    for count in (0, 1, total // 2, total):
        assert at_least(count, total, share) == pytest.approx(exact(range(count, total + 1), total, share), abs=1e-12)
        assert at_most(count, total, share) == pytest.approx(exact(range(count + 1), total, share), abs=1e-12)


def test_tails_hold_for_large_counts():
    assert at_least(600, 1000, 0.5) == pytest.approx(exact(range(600, 1001), 1000, 0.5), rel=1e-9)
    assert 0 < at_most(400, 100_000, 0.01) < 1e-60


def test_paired_test_knows_wins_and_losses_alone():
    assert better(0, 0) == 1.0
    assert better(10, 0) == pytest.approx(2**-10)
    assert better(3, 9) > 0.9


@pytest.mark.parametrize(("right", "total"), [(0, 3), (3, 3), (7, 10), (990, 1000)])
def test_interval_solves_wilsons_equation(right, total):
    for bound in interval(right, total):
        share = bound / 100
        if 0 < share < 1:
            distance = abs(right / total - share)
            assert distance == pytest.approx(1.959964 * sqrt(share * (1 - share) / total), rel=1e-5)
    assert interval(0, 0) == (0.0, 100.0)
