"""The tolerance of clean accuracy: what it measures, how often it errs, and which setting is kept."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.run import Run
from unbackdoor.defender.tolerance import AccuracyTolerance, last_within, paired_drop, right_answers, strongest_within
from unbackdoor.errors import BadOption, BeyondTolerance
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


class Spoilt(nn.Module):
    """Answers the first ``wrong`` of the samples wrongly; a sample is its label and its number."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        labels = torch.where(x[:, 1] < self.wrong, 1 - x[:, 0], x[:, 0])
        return nn.functional.one_hot(labels.long(), 2).double()

    def set(self, wrong: float) -> None:
        with torch.no_grad():
            self.wrong.fill_(wrong)


def samples(count: int, start: int = 0) -> CleanSet:
    labels = torch.arange(count) % 2
    inputs = torch.stack([labels.double(), torch.arange(start, start + count).double()], 1)
    return CleanSet(Batch(inputs, labels))


def _run(holdout: CleanSet | None) -> Run:
    run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), nn.Identity())
    run.holdout = holdout
    return run


def setting(held: int = 100, drop: float = 3.0) -> tuple[Spoilt, AccuracyTolerance, Run]:
    run = _run(samples(held) if held else None)
    model = Spoilt()
    return model, AccuracyTolerance.of(model, TASK, samples(10, held), run, drop), run


def test_drop_and_error_are_those_of_pairs() -> None:
    given = torch.tensor([True, True, True, False])
    now = torch.tensor([True, False, False, True])
    drop, error = paired_drop(given, now)
    assert drop == pytest.approx(25.0)
    pairs = [0.0, 100.0, 100.0, -100.0]
    assert error == pytest.approx(math.sqrt(sum((p - 25.0) ** 2 for p in pairs) / 4) / 2)


def test_right_answers_look_in_eval_mode_and_leave_the_mode() -> None:
    model = nn.Sequential(Spoilt(), nn.Dropout(0.99)).train()
    assert right_answers(model, samples(50), TASK).all()
    assert model.training


def test_error_counts_against_the_method_and_is_logged() -> None:
    model, tolerance, run = setting(100, 3.0)
    model.set(1)  # 1 point, error 0.99
    assert tolerance.accepts(model, threshold=0.5)
    model.set(2)  # 2 points, error 1.40: 3.4 are more than 3
    assert not tolerance.accepts(model, threshold=0.6)
    error = math.sqrt(0.02 * 0.98 / 100) * 100
    assert run.log[1] == pytest.approx({"threshold": 0.6, "drop": 2.0, "standard_error": error, "within": 0.0})


def test_error_of_near_copies_is_that_of_their_groups() -> None:
    given, now = torch.ones(12), torch.tensor([0.0] * 3 + [1.0] * 9)
    groups = torch.arange(12) // 3
    drop, error = paired_drop(given, now, groups)
    assert drop == pytest.approx(25.0)
    assert error == pytest.approx(100 * math.sqrt(2.25**2 + 3 * 0.75**2) / 12)
    assert error > 1.7 * paired_drop(given, now)[1]
    assert paired_drop(given, now, torch.arange(12)) == pytest.approx(paired_drop(given, now))


def acceptance(count: int, lost: float, gained: float, limit: float = 3.0) -> float:
    """Share of drawn holdouts on which a change that loses and gains such shares of answers is accepted."""
    generator = torch.Generator().manual_seed(0)
    _, tolerance, _ = setting(count, limit)
    accepted = 0
    for _ in range(2000):
        drawn = torch.rand(count, generator=generator)
        given, now = drawn >= gained, (drawn < gained) | (drawn >= gained + lost)
        accepted += tolerance._drop(now, given, tolerance.judges[0]).within
    return accepted / 2000


@pytest.mark.parametrize(("lost", "gained"), [(0.05, 0.0), (0.06, 0.01), (0.1, 0.05)])
@pytest.mark.parametrize("count", [36, 67, 100])
def test_loss_beyond_the_tolerance_is_seldom_accepted(count: int, lost: float, gained: float) -> None:
    assert acceptance(count, lost, gained) <= 0.2


@pytest.mark.parametrize(("lost", "gained"), [(0.0, 0.0), (0.01, 0.01), (0.02, 0.02)])
def test_change_that_costs_nothing_is_mostly_accepted(lost: float, gained: float) -> None:
    assert acceptance(100, lost, gained) >= 0.6


def test_everything_is_within_a_tolerance_of_all_points() -> None:
    model, tolerance, _ = setting(25, 100.0)
    model.set(20)
    assert tolerance.accepts(model)


def test_the_strongest_level_within_the_tolerance_is_kept_and_applied() -> None:
    model, tolerance, run = setting()
    tried: list[float] = []

    def apply(level: float) -> None:
        tried.append(level)
        model.set({1: 0, 2: 20, 3: 1, 4: 50, 5: 90}[int(level)])  # the second level is an accident

    assert strongest_within([1, 2, 3, 4, 5], apply, tolerance, model) == 3
    assert tried == [1, 2, 3, 4, 5, 3]
    assert float(model.wrong.detach()) == 1
    assert [entry["level"] for entry in run.log] == [1, 2, 3, 4, 5]


def test_patience_stops_a_long_search() -> None:
    model, tolerance, _ = setting()
    tried: list[float] = []

    def apply(level: float) -> None:
        tried.append(level)
        model.set(level)

    assert strongest_within([1, 20, 30, 2], apply, tolerance, model, patience=2) == 1
    assert tried == [1, 20, 30, 1]


def test_no_level_within_the_tolerance_is_said_and_not_kept() -> None:
    model, tolerance, run = setting()
    assert strongest_within([60, 70], model.set, tolerance, model, what="threshold") is None
    assert "even the mildest threshold lost 60.0" in run.notices[0]


def test_the_last_round_within_the_tolerance_is_kept() -> None:
    model, tolerance, run = setting()
    course = {1: 30, 2: 0, 3: 1, 4: 40}
    assert last_within(4, lambda turn: model.set(course[turn]), model.state_dict, tolerance, model) == 3
    assert float(model.wrong.detach()) == 1
    assert [entry["within"] for entry in run.log] == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("allowed", [False, True])
def test_where_no_round_is_within_the_tolerance_the_given_values_come_back(allowed: bool) -> None:
    model, tolerance, run = setting()
    run.allow_drop = allowed
    course = {1: 70, 2: 40, 3: 80}
    if allowed:
        assert last_within(3, lambda turn: model.set(course[turn]), model.state_dict, tolerance, model) == 2
        assert float(model.wrong.detach()) == 40
        assert "even round 2, the one that cost least, lost 40.0" in run.notices[0]
        return
    with pytest.raises(BeyondTolerance, match=r"even round 2, the one that cost least, lost 40\.0"):
        last_within(3, lambda turn: model.set(course[turn]), model.state_dict, tolerance, model)
    assert float(model.wrong.detach()) == 0


@pytest.mark.parametrize("allowed", [False, True])
def test_a_level_that_is_required_is_refused_or_kept_on_request(allowed: bool) -> None:
    model, tolerance, run = setting()
    run.allow_drop = allowed
    if allowed:
        assert strongest_within([60, 50, 70], model.set, tolerance, model, required=True) == 50
        assert float(model.wrong.detach()) == 50
        assert "kept as asked" in run.notices[0]
        return
    with pytest.raises(BeyondTolerance, match="even the level of 50"):
        strongest_within([60, 50, 70], model.set, tolerance, model, required=True)


@pytest.mark.parametrize("allowed", [False, True])
def test_a_result_beyond_the_tolerance_is_refused_or_told(allowed: bool) -> None:
    model, tolerance, run = setting()
    run.allow_drop = allowed
    model.set(30)
    if allowed:
        tolerance.check(model)
        assert "the result lost 30.0" in run.overruled[0]
        return
    with pytest.raises(BeyondTolerance, match=r"the result lost 30\.0"):
        tolerance.check(model)


def test_where_few_are_held_out_the_tuning_samples_have_to_accept_too() -> None:
    model, tolerance, run = setting(held=10)
    assert "10 clean samples were held out" in run.notices[0]
    assert "a loss of 15 points passes so few" in run.notices[0]
    assert tolerance.accepts(model)
    model.set(2)  # of those that were held out
    assert tolerance.judge(model).drop == pytest.approx(20.0)
    assert not tolerance.accepts(model)


def test_tuning_samples_alone_can_refuse() -> None:
    model = Spoilt()
    tolerance = AccuracyTolerance.of(model, TASK, samples(10), _run(samples(10, 50)), 3.0)
    model.set(5)  # the first five samples, which were tuned on; all that were held out are right
    assert [
        round(tolerance._drop(now, given, judge).drop)
        for now, given, judge in zip(tolerance._now(model), tolerance.given, tolerance.judges, strict=True)
    ] == [0, 50]
    assert not tolerance.accepts(model)


@pytest.mark.parametrize(("held", "sizes"), [(0, [10]), (10, [10, 10]), (20, [20])])
def test_the_holdout_judges_alone_where_it_is_large_enough(held: int, sizes: list[int]) -> None:
    _, tolerance, run = setting(held=held)
    assert list(map(len, tolerance.given)) == sizes
    assert bool(run.notices) == (held < 20)


@pytest.mark.parametrize("drop", [-1.0, math.inf, math.nan])
def test_a_tolerance_outside_its_range_is_refused(drop: float) -> None:
    with pytest.raises(BadOption, match="max_clean_drop"):
        setting(drop=drop)


def test_rounds_below_one_are_refused() -> None:
    model, tolerance, _ = setting()
    with pytest.raises(BadOption, match="rounds"):
        last_within(0, lambda turn: None, model.state_dict, tolerance, model)
