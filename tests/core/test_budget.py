"""The budget of clean accuracy: what it measures, and that the strongest setting within it is kept."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.purifier import Run
from unbackdoor.defender.tolerance import CleanBudget, last_within, paired_drop, right_answers, strongest_within
from unbackdoor.errors import BadOption
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


def setting(held: int = 100, drop: float = 3.0) -> tuple[Spoilt, CleanBudget, Run]:
    run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), nn.Identity())
    run.holdout = samples(held) if held else None
    model = Spoilt()
    return model, CleanBudget.of(model, TASK, samples(10, held), run, drop), run


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


def test_verdict_grants_one_standard_error_and_is_logged() -> None:
    model, budget, run = setting(100, 3.0)
    model.set(4)  # 4 points, error 1.96: within 3 + 1.96
    assert budget.judge(model, threshold=0.5).within
    model.set(6)  # 6 points, error 2.37: beyond 3 + 2.37
    assert not budget.judge(model, threshold=0.6).within
    error = math.sqrt(0.06 * 0.94 / 100) * 100
    assert run.log[1] == pytest.approx({"threshold": 0.6, "drop": 6.0, "standard_error": error, "within": 0.0})


def test_the_strongest_level_within_the_budget_is_kept_and_applied() -> None:
    model, budget, run = setting()
    tried: list[float] = []

    def apply(level: float) -> None:
        tried.append(level)
        model.set({1: 0, 2: 20, 3: 2, 4: 50, 5: 90}[int(level)])  # the second level is an accident

    assert strongest_within([1, 2, 3, 4, 5], apply, budget, model) == 3
    assert tried == [1, 2, 3, 4, 5, 3]
    assert float(model.wrong.detach()) == 2
    assert [entry["level"] for entry in run.log] == [1, 2, 3, 4, 5]


def test_patience_stops_a_long_search() -> None:
    model, budget, _ = setting()
    tried: list[float] = []

    def apply(level: float) -> None:
        tried.append(level)
        model.set(level)

    assert strongest_within([1, 20, 30, 2], apply, budget, model, patience=2) == 1
    assert tried == [1, 20, 30, 1]


def test_no_level_within_the_budget_is_said_and_not_kept() -> None:
    model, budget, run = setting()
    assert strongest_within([60, 70], model.set, budget, model, what="threshold") is None
    assert "even the mildest threshold cost 60.0 points" in run.notices[0]


def test_the_last_round_within_the_budget_is_kept() -> None:
    model, budget, run = setting()
    course = {1: 30, 2: 1, 3: 2, 4: 40}
    assert last_within(4, lambda turn: model.set(course[turn]), model.state_dict, budget, model) == 3
    assert float(model.wrong.detach()) == 2
    assert [entry["within"] for entry in run.log] == [0.0, 1.0, 1.0, 0.0]


def test_of_rounds_that_are_all_beyond_the_budget_the_one_that_cost_least_is_kept_with_a_notice() -> None:
    model, budget, run = setting()
    course = {1: 70, 2: 40, 3: 80}
    assert last_within(3, lambda turn: model.set(course[turn]), model.state_dict, budget, model) is None
    assert float(model.wrong.detach()) == 40
    assert "the one that cost least, 40.0, was kept" in run.notices[0]


def test_too_few_held_out_samples_are_joined_by_the_tuning_ones() -> None:
    model, budget, run = setting(held=10)
    assert "10 samples are held out, too few" in run.notices[0]
    model.set(15)  # all that were held out and 5 of those that were tuned on
    assert budget.judge(model).drop == pytest.approx(75.0)


@pytest.mark.parametrize("held", [0, 20])
def test_the_holdout_judges_alone_where_it_is_large_enough(held: int) -> None:
    _, budget, run = setting(held=held)
    assert len(budget.given) == (10 if held == 0 else 20)
    assert bool(run.notices) == (held == 0)


@pytest.mark.parametrize("drop", [-1.0, math.inf, math.nan])
def test_a_budget_outside_its_range_is_refused(drop: float) -> None:
    with pytest.raises(BadOption, match="max_clean_drop"):
        setting(drop=drop)


def test_rounds_below_one_are_refused() -> None:
    model, budget, _ = setting()
    with pytest.raises(BadOption, match="rounds"):
        last_within(0, lambda turn: None, model.state_dict, budget, model)
