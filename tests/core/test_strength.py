"""Attenuation and recovery: rounds, the budget, milder retries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.purifier import Run
from unbackdoor.defender.strength import Pace, attenuate_and_recover
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask


class Scale(nn.Module):
    """Logits ``value * x``: attenuating the value changes no answer, a negative one changes all."""

    def __init__(self) -> None:
        super().__init__()
        self.values = {"value": torch.ones(1, dtype=torch.float64)}
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.values["value"] * x

    def parameters(self, recurse: bool = True) -> dict[str, Tensor]:  # type: ignore[override]
        return self.values

    def attenuate_(self, factor: float) -> None:
        self.values["value"].mul_(factor)


def tuned(count: int) -> CleanSet:
    """Samples that the model answers rightly while its value is positive."""
    labels = torch.arange(count) % 2
    return CleanSet(Batch(nn.functional.one_hot(labels, 2).double(), labels))


def _setting(held_out: int) -> tuple[Scale, Run, ClassificationTask]:
    run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), nn.Identity())
    run.holdout = tuned(held_out) if held_out else None
    return Scale(), run, ClassificationTask()


def _go(model: Scale, run: Run, task: ClassificationTask, tune: object, **options: object) -> None:
    values = {"steps": 10, "rounds": 3, "attenuation": 0.5, "max_clean_drop": 1.0} | options
    attenuate_and_recover(model, tune, model, task, tuned(30), run, **values)  # type: ignore[arg-type]


def test_rounds_within_the_budget_attenuate_each_time() -> None:
    model, run, task = _setting(40)
    calls: list[tuple[int, float]] = []
    _go(model, run, task, lambda steps, share, message: calls.append((steps, share)))
    torch.testing.assert_close(model.values["value"], torch.tensor([0.125], dtype=torch.float64))
    assert [steps for steps, _ in calls] == [4, 4, 4]
    assert [share for _, share in calls] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_a_round_beyond_the_budget_is_undone_and_retried_milder() -> None:
    model, run, task = _setting(40)
    turns = []

    def tune(steps: int, share: float, message: str) -> None:
        turns.append(float(model.values["value"]))
        if share > 0.5:
            model.values["value"].mul_(-1.0)

    _go(model, run, task, tune)
    torch.testing.assert_close(model.values["value"], torch.tensor([0.5], dtype=torch.float64))
    tried = [0.5] + [0.5 * 0.5 ** (0.5**k) for k in range(4)] + [0.5]
    assert turns == pytest.approx(tried)
    assert [entry["within"] for entry in run.log] == [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]


def test_what_is_left_of_the_steps_goes_on_without_attenuation() -> None:
    model, run, task = _setting(40)
    calls: list[tuple[int, str]] = []

    def tune(steps: int, share: float, message: str) -> None:
        calls.append((steps, message))
        if len(calls) > 1:
            model.values["value"].mul_(-1.0 if len(calls) < 6 else 3.0)

    _go(model, run, task, tune, rounds=5)
    assert calls[-1] == (8, "for what is left of the steps")
    torch.testing.assert_close(model.values["value"], torch.tensor([1.5], dtype=torch.float64))
    assert run.log[-1]["attenuation"] == 1.0


class Remembering:
    """Found something, which costs what the model's tuning made of it, in each sample a little less or more."""

    def __init__(self, costs: list[float]) -> None:
        self.costs, self.asked = costs, 0

    def left(self, inputs: Tensor, losses: object) -> Tensor | None:
        cost = self.costs[self.asked]
        self.asked += 1
        return None if math.isnan(cost) else cost + 0.1 * torch.linspace(-1, 1, len(inputs)) * (-1) ** self.asked


@pytest.mark.parametrize(
    ("costs", "tuned", "kept"),
    [
        ([5.0, 1.0, 1.0, 0.0], 2, 1),  # the second round gains nothing, so it is undone
        ([5.0, 1.0, 0.5, 0.501, 0.0], 3, 2),
        ([5.0, 5.0, 4.0, 4.0], 3, 2),  # the first round stays, whatever it gains
        ([5.0, 4.0, 3.0, 2.0, 1.0], 4, 4),  # a third of twelve
        ([math.nan], 12, 12),  # nothing was found
    ],
)
def test_rounds_end_where_one_does_not_lessen_what_the_search_found(costs: list[float], tuned: int, kept: int) -> None:
    model, run, task = _setting(40)
    run.disturbers.append(Remembering(costs))  # type: ignore[arg-type]
    calls: list[int] = []
    _go(model, run, task, lambda steps, share, message: calls.append(steps), rounds=12, steps=120)
    assert calls == [120 // (12 if math.isnan(costs[0]) else 4)] * tuned
    assert float(model.values["value"]) == pytest.approx(0.5**kept)
    told = [entry["left"] for entry in run.log if "left" in entry]
    assert told == pytest.approx([] if math.isnan(costs[0]) else costs[: tuned + 1], abs=1e-6)


def test_a_gain_within_its_standard_error_is_none() -> None:
    """Costs of +-0.1 that change sides: the paired differences deviate by about 0.12, 0.018 in the mean of 40."""
    for gain, tuned in ((0.01, 2), (0.03, 3)):
        model, run, task = _setting(40)
        run.disturbers.append(Remembering([5.0, 1.0, 1 - gain, 1.0]))  # type: ignore[arg-type]
        calls: list[int] = []
        _go(model, run, task, lambda steps, share, message, calls=calls: calls.append(steps), rounds=12, steps=120)
        assert len(calls) == tuned, gain


def test_without_attenuation_what_the_search_found_ends_nothing() -> None:
    model, run, task = _setting(40)
    run.disturbers.append(Remembering([1.0] * 5))  # type: ignore[arg-type]
    calls: list[int] = []
    _go(model, run, task, lambda steps, share, message: calls.append(steps), rounds=4, attenuation=1.0)
    assert len(calls) == 4


def test_a_recovery_that_costs_more_is_undone() -> None:
    model, run, task = _setting(40)
    calls: list[int] = []

    def tune(steps: int, share: float, message: str) -> None:
        calls.append(steps)
        if len(calls) > 1:
            model.values["value"].mul_(-1.0)

    _go(model, run, task, tune, rounds=5)
    torch.testing.assert_close(model.values["value"], torch.tensor([0.5], dtype=torch.float64))
    assert [entry["within"] for entry in run.log] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_the_mildest_first_round_is_kept_with_a_notice() -> None:
    model, run, task = _setting(40)

    def tune(steps: int, share: float, message: str) -> None:
        model.values["value"].abs_().mul_(-1.0)

    _go(model, run, task, tune)
    torch.testing.assert_close(model.values["value"], torch.tensor([-(0.5**0.125)], dtype=torch.float64))
    assert "the first round of tuning costs 100.0 points" in run.notices[0]


@pytest.mark.parametrize(
    ("wrong", "value"),
    [
        ([3, 3], 0.5),  # no less in a milder form: the stronger one stands
        ([3, 4], 0.5),
        ([4, 3, 3], 0.5**0.5),
        ([4, 3, 2, 2], 0.5**0.25),
        ([5, 4, 3, 2], 0.5**0.125),
        ([20, 20, 20, 20], 0.5**0.125),  # a collapse says nothing about what costs
    ],
)
def test_a_milder_first_round_must_cost_less(wrong: list[int], value: float) -> None:
    """Some of the 40 held-out samples come out wrong in each form of the first round, and all after it."""
    model, run, task = _setting(40)
    assert run.holdout is not None
    judged = iter([*wrong, 40])
    before = model.forward

    def forward(x: Tensor) -> Tensor:
        signs = torch.ones(len(x), 1, dtype=x.dtype)
        signs[: state["wrong"]] = -1
        return signs * before(x)

    state = {"wrong": 0}

    def tune(steps: int, share: float, message: str) -> None:
        state["wrong"] = next(judged)
        if "left" in message:
            model.values["value"].mul_(3.0)  # costs more than what stood, so it is undone

    model.forward = forward  # type: ignore[method-assign]
    _go(model, run, task, tune)
    torch.testing.assert_close(model.values["value"], torch.tensor([value], dtype=torch.float64))
    assert [entry["drop"] for entry in run.log] == pytest.approx([2.5 * count for count in [*wrong, 40]])


def test_a_first_round_that_recovers_with_the_rest_of_the_steps_needs_no_notice() -> None:
    model, run, task = _setting(40)

    def tune(steps: int, share: float, message: str) -> None:
        model.values["value"].abs_().mul_(1.0 if "left" in message else -1.0)

    _go(model, run, task, tune)
    torch.testing.assert_close(model.values["value"], torch.tensor([0.5**0.125], dtype=torch.float64))
    assert not run.notices


@pytest.mark.parametrize("held_out", [0, 5])
def test_where_too_few_are_held_out_the_tuning_samples_judge_too(held_out: int) -> None:
    model, run, task = _setting(held_out)

    def tune(steps: int, share: float, message: str) -> None:
        if share > 0.5:
            model.values["value"].mul_(-1.0)

    _go(model, run, task, tune)
    torch.testing.assert_close(model.values["value"], torch.tensor([0.5], dtype=torch.float64))
    assert f"{held_out} samples are held out, too few to judge" in run.notices[0]


def test_sparse_samples_are_tuned_on_in_one_round_without_attenuation() -> None:
    model, run, task = _setting(0)
    run.sparse = True
    calls: list[tuple[int, float]] = []
    _go(model, run, task, lambda steps, share, message: calls.append((steps, share)))
    assert calls == [(4, 1.0)], "a third of the steps"
    torch.testing.assert_close(model.values["value"], torch.ones(1, dtype=torch.float64))
    assert run.log == []
    assert "tuned gently: one round, of 4 steps" in run.notices[0]


@pytest.mark.parametrize(
    ("costs", "rates"),
    [
        ([8.0, 0.5, 1.0], [0.125, 0.25]),  # an eighth is little enough, after two rounds
        ([8.0, 1.1, 1.1, 0.9], [0.125, 0.25, 0.25]),
        ([8.0, 5.0, 7.0, 3.0, 2.0, 0.9], [0.125, 0.25, 0.25, 0.25, 0.25]),  # none undone
        ([8.0] * 7, [0.125, 0.25, 0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_sparse_samples_are_tuned_on_gently_until_what_was_found_costs_little(
    costs: list[float], rates: list[float]
) -> None:
    model, run, task = _setting(0)
    run.sparse, pace = True, Pace(0.5)
    run.disturbers.append(Remembering(costs))  # type: ignore[arg-type]
    calls: list[tuple[int, float]] = []
    _go(
        model, run, task, lambda steps, share, message: calls.append((steps, 2 * pace.factor)),
        steps=120, attenuation=0.7, pace=pace,
    )  # fmt: skip
    assert calls == [(20, rate) for rate in rates]
    told = [entry["left"] for entry in run.log]
    assert told == pytest.approx(costs[: len(rates) + 1], abs=1e-6)
    assert f"{len(rates)} of at most 6 rounds, of 20 steps, the first at 1/8 of the learning rate" in run.notices[0]
    assert f"still costs {told[-1]:.1f} nats, of 8.0 before)." in run.notices[0]


@pytest.mark.parametrize(("attenuation", "factor", "steps"), [(0.7, 0.25, 4), (1.0, 1.0, 10)])
def test_sparse_samples_are_tuned_on_gently_unless_the_options_say_how(
    attenuation: float, factor: float, steps: int
) -> None:
    model, run, task = _setting(0)
    run.sparse, pace = True, Pace()
    calls: list[tuple[int, float]] = []
    options = {"rounds": 1} if attenuation == 1 else {}
    _go(
        model, run, task, lambda steps, share, message: calls.append((steps, pace.factor)),
        attenuation=attenuation, pace=pace, **options,
    )  # fmt: skip
    assert calls == [(steps, factor)]


def test_there_are_no_more_rounds_than_steps() -> None:
    model, run, task = _setting(40)
    lengths: list[int] = []
    _go(model, run, task, lambda steps, share, message: lengths.append(steps), steps=2, rounds=15)
    assert lengths == [1, 1]


def test_the_papers_single_round_is_not_judged() -> None:
    model, run, task = _setting(0)
    _go(model, run, task, lambda steps, share, message: None, rounds=1, attenuation=1.0)
    assert run.log == []
    assert run.notices == []


@pytest.mark.parametrize(
    ("name", "value"), [("rounds", 0), ("attenuation", 0.0), ("attenuation", 1.5), ("max_clean_drop", math.inf)]
)
def test_options_outside_their_range_are_refused(name: str, value: float) -> None:
    model, run, task = _setting(40)
    with pytest.raises(BadOption, match=name):
        _go(model, run, task, lambda steps, share, message: None, **{name: value})


def test_a_first_round_that_collapses_twice_begins_anew_with_a_slower_pace_and_longer_rounds() -> None:
    model, run, task = _setting(40)
    pace, tried, lengths = Pace(), [], []

    def tune(steps: int, share: float, message: str) -> None:
        tried.append((pace.factor, float(model.values["value"])))
        lengths.append(steps)
        if pace.factor > 0.1:
            model.values["value"].mul_(-1.0)

    _go(model, run, task, tune, pace=pace, steps=180, rounds=18)
    assert lengths == [10, 10, 30, 30, 90, 90]
    milder = 0.5**0.5
    assert [factor for factor, _ in tried] == [1.0, 1.0, 0.125, 0.125, 0.015625, 0.015625]
    assert [value for _, value in tried] == pytest.approx([0.5, milder, 0.5, milder, 0.5, 0.25])
    torch.testing.assert_close(model.values["value"], torch.tensor([0.25], dtype=torch.float64))
    assert len(run.notices) == 2
    assert "0.015625 of the learning rate" in run.notices[1]


def test_a_pace_is_slowed_twice_at_most_and_never_for_later_rounds() -> None:
    model, run, task = _setting(40)
    pace = Pace()
    _go(
        model,
        run,
        task,
        lambda steps, share, message: model.values["value"].abs_().mul_(-1.0),
        pace=pace,
        steps=18,
        rounds=18,
    )
    assert pace.factor == pytest.approx(1 / 64)
    assert len(run.log) == 2 + 2 + 4 + 1
    assert "however mild it is" in run.notices[-1]

    model, run, task = _setting(40)
    pace = Pace()

    def late(steps: int, share: float, message: str) -> None:
        if share > 0.5:
            model.values["value"].mul_(-1.0)

    _go(model, run, task, late, pace=pace)
    assert pace.factor == 1.0
