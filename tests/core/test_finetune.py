"""The training loop: what it skips, clips, schedules and gives back."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unbackdoor.defender.fit import finetune, gradients
from unbackdoor.defender.schedule import learning_rate_factor
from unbackdoor.errors import BadOption, NonFinite


def tuned(count=3, value=1.0):
    return torch.full((count,), value, dtype=torch.float64, requires_grad=True)


def trace_of(weights, objective, clean, run, **options):
    """The values before each step and after the last."""
    seen = []

    def spy(step, batch):
        seen.append([w.detach().clone() for w in weights])
        return objective(step, batch)

    finetune(weights, spy, clean, run, **{"steps": 10, "batch_size": 4, "lr": 0.1, "schedule": "constant"} | options)
    return [*seen, [w.detach().clone() for w in weights]]


def test_finetune_equals_sgd_by_hand(clean, run):
    weight = tuned()
    seen = trace_of([weight], lambda step, batch: weight.square().sum(), clean, run, momentum=0.9, weight_decay=0.1)
    value, velocity = torch.ones(3, dtype=torch.float64), 0
    for step in range(10):
        velocity = 0.9 * velocity + 2 * value + 0.1 * value
        value = value - 0.1 * velocity
        assert_close(seen[step + 1][0], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_finetune_step_that_is_not_finite_changes_nothing_and_is_reported(clean, run, optimiser, bad):
    weight = tuned()
    seen = trace_of(
        [weight],
        lambda step, batch: weight.square().sum() * (bad if step == 3 else 1.0),
        clean, run, steps=40, weight_decay=0.1, optimiser=optimiser,
    )  # fmt: skip
    assert torch.equal(seen[4][0], seen[3][0])
    assert not torch.equal(seen[5][0], seen[4][0])
    assert all(bool(torch.isfinite(w).all()) for values in seen for w in values)
    assert any("1 of 40 steps" in text and "skipped" in text for text in run.notices)


def test_finetune_step_with_one_broken_gradient_skips_all_of_them(clean, run):
    """A finite loss may still have a gradient that is not."""
    weight, other = tuned(), tuned()

    def objective(step, batch):
        hidden = (weight - weight.detach()).abs().sqrt().sum() if step == 3 else 0.0  # sqrt'(0) is infinite
        return other.square().sum() + weight.square().sum() + hidden

    seen = trace_of([weight, other], objective, clean, run)
    assert_close(seen[4], seen[3], rtol=0, atol=0)


def test_finetune_gives_up_where_the_loss_stays_nan(clean, run):
    weight = tuned()
    with pytest.raises(NonFinite, match="halved five times"):
        finetune([weight], lambda s, b: weight.sum() * math.nan, clean, run, steps=200, batch_size=4, lr=0.1)
    assert torch.equal(weight.detach(), torch.ones(3, dtype=torch.float64))


def test_finetune_backs_off_to_the_last_good_values_and_goes_on(clean, run):
    weight = tuned()
    bad = range(20, 40)
    seen = trace_of(
        [weight], lambda s, b: weight.square().sum() * (math.nan if s in bad else 1.0), clean, run, steps=200, lr=1e-3
    )
    assert any("lr was halved" in text for text in run.notices)
    rates = [entry["lr"] for entry in run.log]
    assert_close(rates[-1], 1e-3 / 4, rtol=1e-9, atol=0)
    assert float(seen[-1][0].abs().max()) < float(seen[20][0].abs().max())


def test_finetune_clips_the_norm_of_the_whole_gradient(clean, run):
    weight, other = tuned(value=30.0), tuned(value=40.0)
    seen = trace_of([weight, other], lambda s, b: weight.square().sum() / 2 + other.square().sum() / 2, clean, run,
                    steps=1, clip=5.0, momentum=0.0, lr=1.0)  # fmt: skip
    moved = torch.cat([a - b for a, b in zip(seen[0], seen[1], strict=True)])
    assert_close(float(moved.norm()), 5.0, rtol=0, atol=1e-9)
    assert_close(moved[3] / moved[0], torch.tensor(4 / 3, dtype=torch.float64), rtol=0, atol=1e-9)


def test_finetune_clips_once_where_two_parameters_share_a_gradient(clean, run):
    """Autograd may hand out one tensor as the gradient of both terms of a sum."""
    weight, other = tuned(), tuned()
    seen = trace_of([weight, other], lambda s, b: (10 * (weight + other)).sum(), clean, run,
                    steps=1, clip=1.0, momentum=0.0, lr=1.0)  # fmt: skip
    moved = torch.cat([a - b for a, b in zip(seen[0], seen[1], strict=True)])
    assert_close(float(moved.norm()), 1.0, rtol=0, atol=1e-9)


def test_finetune_leaves_small_gradients_unclipped(clean, run):
    weight = tuned(value=1e-3)
    seen = trace_of([weight], lambda s, b: weight.square().sum(), clean, run, steps=1, clip=1.0, lr=1.0, momentum=0.0)
    assert_close(seen[1][0], seen[0][0] - 2e-3, rtol=0, atol=1e-15)


@pytest.mark.parametrize("options", [{"clip": 0.0}, {"clip": -1.0}, {"optimiser": "lion"}, {"schedule": "sawtooth"}])
def test_finetune_refuses_options_that_do_not_exist(clean, run, options):
    weight = tuned()
    with pytest.raises(BadOption):
        trace_of([weight], lambda s, b: weight.sum(), clean, run, **options)


def test_finetune_leaves_parameters_without_gradient_alone(clean, run):
    used, unused = tuned(), tuned()
    finetune([used, unused], lambda s, b: used.square().sum(), clean, run, steps=3, batch_size=4, lr=0.1,
             weight_decay=0.5)  # fmt: skip
    assert torch.equal(unused.detach(), torch.ones(3, dtype=torch.float64))


def test_finetune_leaves_no_gradients_behind_and_counts_what_it_tuned(clean, run):
    weight, other = tuned(3), tuned(5)
    finetune([weight, other], lambda s, b: weight.sum() + other.sum(), clean, run, steps=2, batch_size=4, lr=0.1)
    assert weight.grad is None
    assert other.grad is None
    assert run.trainable == 8


def test_finetune_projects_after_every_step(clean, run):
    weight, calls = tuned(), []

    def project():
        calls.append(float(weight.detach().min()))
        with torch.no_grad():
            weight.clamp_(min=0.9)

    finetune([weight], lambda s, b: weight.sum(), clean, run, steps=5, batch_size=4, lr=0.1, after_step=project)
    assert len(calls) == 5
    assert float(weight.detach().min()) == 0.9


def test_finetune_logs_and_tells_the_watcher_in_order(clean, run):
    told = []
    run.watch = told.append
    weight = tuned()
    finetune([weight], lambda s, b: weight.square().sum(), clean, run, steps=50, batch_size=4, lr=0.01, message="hi")
    assert [p.step for p in told] == [int(entry["step"]) for entry in run.log]
    assert told[-1].step == told[-1].steps == 50
    assert {p.message for p in told} == {"hi"}
    assert {"loss", "lr", "gradient_norm"} <= set(run.log[0])
    assert run.log[-1]["loss"] < run.log[0]["loss"]


def test_finetune_draws_batches_from_the_runs_generator(clean, run):
    weight, seen = tuned(), []

    def objective(step, batch):
        seen.append(batch.inputs.clone())
        return weight.sum()

    state = torch.get_rng_state()
    finetune([weight], objective, clean, run, steps=3, batch_size=4, lr=0.1)
    assert torch.equal(torch.get_rng_state(), state)
    expected = clean.batches(4, torch.Generator().manual_seed(0))
    assert_close(seen, [next(expected).inputs for _ in range(3)], rtol=0, atol=0)
    assert torch.cat(seen).unique(dim=0).shape[0] == 12


def test_finetune_tunes_modules_of_any_memory_format(clean, run):
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    twin = copy.deepcopy(layer).to(memory_format=torch.contiguous_format)
    x = torch.rand(2, 3, 5, 5)
    for module in (layer, twin):
        run.generator.manual_seed(0)
        finetune(list(module.parameters()), lambda s, b, m=module: m(x).square().mean(), clean, run, steps=5,
                 batch_size=4, lr=0.1, clip=0.5)  # fmt: skip
    assert_close(layer.weight, twin.weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "step", "constant"])
def test_schedule_stays_within_zero_and_one_and_reaches_one(schedule):
    factors = [learning_rate_factor(schedule, step, 100) for step in range(100)]
    assert min(factors) >= 0
    assert_close(max(factors), 1.0, rtol=0, atol=1e-3)
    assert math.isfinite(learning_rate_factor(schedule, 0, 1))


def test_schedule_shapes_are_those_of_the_docstring():
    assert_close(learning_rate_factor("one-cycle", 0, 100), 1 / 25, rtol=0, atol=1e-12)
    assert_close(learning_rate_factor("one-cycle", 30, 100), 1.0, rtol=0, atol=1e-12)
    rising = [learning_rate_factor("one-cycle", step, 100) for step in range(31)]
    falling = [learning_rate_factor("one-cycle", step, 100) for step in range(30, 101)]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert_close([learning_rate_factor("cosine", s, 10) for s in (0, 5, 10)], [1.0, 0.5, 0.0], rtol=0, atol=1e-12)
    assert [learning_rate_factor("step", s, 50) for s in (0, 39, 40, 49)] == [1.0, 1.0, 0.1, 0.1]
    assert learning_rate_factor("constant", 7, 10) == 1.0
    with pytest.raises(BadOption, match="Known: one-cycle"):
        learning_rate_factor("linear", 0, 1)


def test_gradients_of_terms_add_up_and_each_graph_is_freed_before_the_next():
    first, second = tuned(2), tuned(2)

    def terms():
        freed = (first**2).sum()
        yield freed
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(freed, [first])
        yield (first**3).sum()

    total, slopes = gradients(terms(), [first, second])
    assert_close(total, torch.tensor(4.0, dtype=torch.float64))
    assert_close(slopes[0], torch.full((2,), 5.0, dtype=torch.float64))
    assert slopes[1] is None
    assert not total.requires_grad


def test_gradients_of_no_term_are_refused():
    with pytest.raises(ValueError, match="no term"):
        gradients(iter(()), [tuned()])
