"""The Fisher's diagonal and trace against their definitions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.testing import assert_close

from unbackdoor.data import CleanSet
from unbackdoor.defender.curvature import fisher_diagonal, fisher_trace, per_sample_gradients, twice_differentiable
from unbackdoor.defender.reparam import FullWeights, NeuronMask, SpectralShift

EXACT = {"rtol": 0, "atol": 1e-10}
SOME = (
    "linear",
    "conv-bn",
    "grouped",
    "called-twice",
    "tied-linear",
    "lstm",
    "attention",
    "encoder-layer",
    "hard-activations",
)


def handle_on(model, batch, kind=SpectralShift):
    handle = FullWeights(model) if kind is FullWeights else kind(model, lambda: model(batch.inputs))
    with torch.no_grad():
        for value in handle.parameters().values():
            value.add_(0.05)
    return handle


@pytest.mark.parametrize("kind", [SpectralShift, NeuronMask, FullWeights])
@pytest.mark.parametrize("name", SOME)
def test_fisher_diagonal_is_the_mean_of_squares(cases, name, kind, task):
    model, batch = cases[name].model(), cases[name].batch(7)
    values = None
    with handle_on(model, batch, kind) as handle, twice_differentiable(model):
        found = fisher_diagonal(handle, model, task, CleanSet(batch), chunk=3)
        values = handle.parameters()
        total = {n: torch.zeros_like(v) for n, v in values.items()}
        for n in range(len(batch)):
            score = task.log_likelihood(task.forward(model, batch.inputs[n : n + 1]), batch.targets[n : n + 1]).sum()
            gradients = torch.autograd.grad(score, list(values.values()), allow_unused=True)
            for key, g in zip(values, gradients, strict=True):
                total[key] += 0 if g is None else g.detach().square()
    assert_close(found, {n: (v / len(batch)).detach() for n, v in total.items()}, **EXACT)
    assert not any(v.requires_grad for v in found.values())


def test_fisher_diagonal_is_not_the_square_of_the_mean(cases, task):
    """At the minimum of the loss the mean gradient vanishes and the Fisher does not."""
    model, batch = cases["linear"].model(), cases["linear"].batch(9)
    targets = torch.tensor([0, 1, 2] * 3)
    inputs = batch.inputs[:1].expand(9, -1)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    clean = CleanSet.of((inputs.clone(), targets))
    with FullWeights(model) as weights:
        fisher = fisher_diagonal(weights, model, task, clean)["head.bias"]
        loss = task.loss(model(inputs), targets)
        (mean,) = torch.autograd.grad(loss, [weights.parameters()["head.bias"]])
    assert_close(mean, torch.zeros_like(mean), **EXACT)
    assert_close(fisher, torch.full_like(fisher, 2 / 9), **EXACT)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_fisher_diagonal_does_not_depend_on_the_chunk(cases, task, chunk):
    model, batch = cases["conv-bn"].model(), cases["conv-bn"].batch(7)
    with handle_on(model, batch) as handle:
        found = fisher_diagonal(handle, model, task, CleanSet(batch), chunk=chunk)
        expected = fisher_diagonal(handle, model, task, CleanSet(batch))
    assert_close(found, expected, **EXACT)


class Signs(torch.Generator):
    """Not a source of chance: `all_traces` puts the coins in its place."""


def all_traces(scores, values, monkeypatch):
    """The estimate for every one of the 2^B sign vectors."""
    count = len(scores)
    found = []
    for coins in itertools.product((0, 1), repeat=count):
        monkeypatch.setattr(torch, "randint", lambda *a, coins=coins, **k: torch.tensor(coins))
        found.append(fisher_trace(scores, values, torch.Generator()))
    monkeypatch.undo()
    return torch.stack(found)


@pytest.mark.parametrize("kind", [SpectralShift, NeuronMask, FullWeights])
@pytest.mark.parametrize("name", SOME)
def test_fisher_trace_over_all_signs_averages_to_the_exact_trace_and_gradient(cases, name, kind, task, monkeypatch):
    model, batch = cases[name].model(), cases[name].batch(4)
    with handle_on(model, batch, kind) as handle, twice_differentiable(model):
        values = [v.requires_grad_(True) for v in handle.parameters().values()]
        scores = task.log_likelihood(task.forward(model, batch.inputs), batch.targets)
        average = all_traces(scores, values, monkeypatch).mean()
        exact = torch.zeros((), dtype=torch.float64)
        for score in scores:
            row = torch.autograd.grad(score, values, create_graph=True, allow_unused=True)
            exact = exact + sum(g.square().sum() for g in row if g is not None)
        exact = exact / len(batch)
        rows = per_sample_gradients(handle, model, task, batch)
        assert_close(exact.detach(), sum(r.square().sum() for r in rows.values()) / len(batch), **EXACT)
        assert_close(average.detach(), exact.detach(), **EXACT)
        found = torch.autograd.grad(average, values, retain_graph=True, allow_unused=True)
        expected = torch.autograd.grad(exact, values, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        zero = torch.zeros(())
        assert_close(zero if one is None else one, zero if other is None else other, check_dtype=False, **EXACT)
    assert any(g is not None and float(g.abs().max()) > 0 for g in expected)


def test_fisher_trace_converges_over_draws(cases, task):
    model, batch = cases["conv2d"].model(), cases["conv2d"].batch(8)
    with handle_on(model, batch) as handle:
        values = list(handle.parameters().values())
        scores = task.log_likelihood(task.forward(model, batch.inputs), batch.targets)
        generator = torch.Generator().manual_seed(0)
        draws = torch.stack([fisher_trace(scores, values, generator).detach() for _ in range(400)])
        rows = per_sample_gradients(handle, model, task, batch)
    exact = float(sum(r.square().sum() for r in rows.values()) / len(batch))
    error = float(draws.std() / len(draws) ** 0.5)
    assert bool((draws >= 0).all())
    assert abs(float(draws.mean()) - exact) < 4 * error
    assert error < 0.1 * exact


def test_fisher_trace_is_drawn_from_its_generator(cases, task):
    model, batch = cases["conv2d"].model(), cases["conv2d"].batch(8)
    with handle_on(model, batch) as handle:
        values = list(handle.parameters().values())
        scores = task.log_likelihood(task.forward(model, batch.inputs), batch.targets)
        draw = [float(fisher_trace(scores, values, torch.Generator().manual_seed(s)).detach()) for s in (0, 0, 1)]
    assert draw[0] == draw[1] != draw[2]
