"""Exact tests against sums of fractions, and Wilson's interval against its defining equation."""

from __future__ import annotations

from fractions import Fraction
from math import comb, sqrt

import pytest
import torch

from unbackdoor.defender.preflight.significance import at_least, at_most, better, drop_interval, interval


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


def test_unchanged_answers_on_few_samples_rule_out_little() -> None:
    low, high = drop_interval(torch.ones(33), torch.ones(33))
    assert high == pytest.approx(100 * (1 - 0.0125 ** (1 / 33)), abs=1e-6)
    assert low == pytest.approx(-high)
    assert drop_interval(torch.ones(0), torch.ones(0)) == (-100.0, 100.0)


def test_interval_of_a_drop_holds_it_as_often_as_it_says() -> None:
    generator, held = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        drawn = torch.rand(40, generator=generator)
        low, high = drop_interval(drawn >= 0.05, (drawn < 0.05) | (drawn >= 0.2))  # 15 points lost, 5 gained
        held += low <= 10 <= high
    assert held >= 285


def test_interval_of_a_drop_of_near_copies_is_as_wide_as_their_groups_are_few() -> None:
    given, now = torch.ones(60), (torch.arange(60) >= 12).float()
    alone = drop_interval(given, now)
    low, high = drop_interval(given, now, torch.arange(60) // 6)
    assert high - low > alone[1] - alone[0]
    assert low <= 20 <= high
    assert drop_interval(given, now, torch.arange(60) // 6) == (low, high), "the draws are the same every time"


def test_interval_of_degrees_is_around_their_mean() -> None:
    low, high = drop_interval(torch.full((50,), 0.75), torch.linspace(0.25, 0.75, 50))
    assert low < 25 < high
    assert high - low < 10
