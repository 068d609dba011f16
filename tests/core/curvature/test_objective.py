"""FIP's objective against Eq. (8) assembled by hand."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from unbackdoor.data import CleanSet
from unbackdoor.defender.curvature import fisher_diagonal, fisher_trace
from unbackdoor.defender.fit import gradients
from unbackdoor.defender.methods.fip import FIP
from unbackdoor.defender.reparam import FullWeights, SpectralShift

EXACT = {"rtol": 0, "atol": 1e-10}


def objective(**changes):
    return FIP(**{"trace_weight": 0.3, "trace_every": 2, "trace_samples": 3, "retain_weight": 5.0} | changes)


@pytest.mark.parametrize("kind", [SpectralShift, FullWeights])
@pytest.mark.parametrize("step", [0, 1])
def test_objective_equals_equation_eight(cases, task, run, kind, step):
    model, batch = cases["conv-bn"].model(), cases["conv-bn"].batch(6)
    clean = CleanSet(batch)
    handle = FullWeights(model) if kind is FullWeights else kind(model, lambda: model(batch.inputs))
    with handle:
        values = handle.parameters()
        start = {n: v.detach().clone() for n, v in values.items()}
        fisher = fisher_diagonal(handle, model, task, clean)
        anchor = objective().anchor(handle, model, task, clean, run)
        with torch.no_grad():
            for value in values.values():
                value.add_(0.1)
        terms = objective().terms(step, batch, anchor=anchor)
        found, slopes = gradients(terms, list(values.values()))
        loss = -task.log_likelihood(model(batch.inputs), batch.targets).mean()
        retained = sum((fisher[n] * (values[n] - start[n]) ** 2).sum() for n in values)
        expected = loss + 5.0 / 2 * retained
        if step == 0:
            generator = torch.Generator().manual_seed(0)
            few = next(clean.batches(3, generator))
            scores = task.log_likelihood(model(few.inputs), few.targets)
            expected = expected + 0.3 * fisher_trace(scores, list(values.values()), generator)
        assert_close(found, expected.detach(), **EXACT)
        assert_close(slopes, list(torch.autograd.grad(expected, list(values.values()))), **EXACT)


def test_objective_leaves_terms_of_weight_zero_out(cases, task, run):
    model, batch = cases["conv-bn"].model(), cases["conv-bn"].batch(6)
    bare = objective(trace_weight=0.0, retain_weight=0.0)
    with FullWeights(model) as handle:
        anchor = bare.anchor(handle, model, task, CleanSet(batch), run)
        assert anchor.fisher == {}
        (found,) = bare.terms(0, batch, anchor=anchor)
        assert_close(found, task.loss(model(batch.inputs), batch.targets), **EXACT)


def test_objective_takes_the_trace_of_plain_samples_whatever_the_loss_is_of(cases, task, run):
    model, batch = cases["linear"].model(), cases["linear"].batch(6)
    smooth = objective(retain_weight=0.0, trace_samples=6)
    with FullWeights(model) as handle:
        anchor = smooth.anchor(handle, model, task, CleanSet(batch), run)
        mixed = task.augment(batch, torch.Generator().manual_seed(1), mix=1.0)
        smoothness, loss = smooth.terms(0, mixed, anchor=anchor)
        generator = torch.Generator().manual_seed(0)
        plain = next(CleanSet(batch).batches(6, generator))
        scores = task.log_likelihood(model(plain.inputs), plain.targets)
        expected = 0.3 * fisher_trace(scores, list(handle.parameters().values()), generator)
        assert_close(smoothness, expected, **EXACT)
        assert_close(loss, task.loss(model(mixed.inputs), mixed.targets), **EXACT)


def test_objective_retainer_is_zero_at_the_start_and_grows(cases, task, run):
    model, batch = cases["conv-bn"].model(), cases["conv-bn"].batch(6)
    shift = SpectralShift(model, lambda: model(batch.inputs))
    with shift:
        anchor = objective().anchor(shift, model, task, CleanSet(batch), run)
        assert float(anchor.distance().detach()) == 0
        with torch.no_grad():
            for value in shift.parameters().values():
                value.add_(1.0)
        expected = float(sum(f.sum() for f in anchor.fisher.values()))
        assert_close(float(anchor.distance().detach()), expected, **EXACT)
