"""Per-sample gradients against a loop over single samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unbackdoor.data import CleanSet
from unbackdoor.defender.curvature import fisher_diagonal, per_sample_gradients, twice_differentiable
from unbackdoor.defender.reparam import FullWeights, NeuronMask, SpectralShift
from unbackdoor.errors import UnsupportedModel

EXACT = {"rtol": 0, "atol": 1e-10}
HANDLES = {
    "shift": lambda model, probe: SpectralShift(model, probe),
    "relative-shift": lambda model, probe: SpectralShift(model, probe, relative=True),
    "mask": lambda model, probe: NeuronMask(model, probe),
    "weights": lambda model, probe: FullWeights(model),
}


def attached(kind, model, batch):
    handle = HANDLES[kind](model, lambda: model(batch.inputs))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in handle.parameters().values():
            value.add_(0.1 * torch.rand(value.shape, generator=generator, dtype=value.dtype))
    return handle


def loop(handle, model, task, batch):
    """One backward pass a sample, by autograd alone."""
    values = handle.parameters()
    rows = {name: [] for name in values}
    with twice_differentiable(model):
        for n in range(len(batch)):
            score = task.log_likelihood(task.forward(model, batch.inputs[n : n + 1]), batch.targets[n : n + 1]).sum()
            gradients = torch.autograd.grad(score, list(values.values()), allow_unused=True)
            for (name, value), g in zip(values.items(), gradients, strict=True):
                rows[name].append(torch.zeros_like(value) if g is None else g)
    return {name: torch.stack(parts) for name, parts in rows.items()}


@pytest.mark.parametrize("kind", HANDLES)
def test_per_sample_gradients_equal_a_loop(case, kind, task):
    model, batch = case.model(), case.batch(5)
    with attached(kind, model, batch) as handle:
        found = per_sample_gradients(handle, model, task, batch)
        expected = loop(handle, model, task, batch)
    assert {n: g.shape for n, g in found.items()} == {n: (5, *v.shape) for n, v in handle.parameters().items()}
    assert not any(g.requires_grad for g in found.values())
    assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("kind", HANDLES)
def test_per_sample_gradients_sum_to_the_gradient_of_the_batch(case, kind, task):
    model, batch = case.model(), case.batch(5)
    with attached(kind, model, batch) as handle, twice_differentiable(model):  # float32 constants in a fused kernel
        rows = per_sample_gradients(handle, model, task, batch)
        total = task.log_likelihood(task.forward(model, batch.inputs), batch.targets).sum()
        gradients = torch.autograd.grad(total, list(handle.parameters().values()), allow_unused=True)
    for row, g in zip(rows.values(), gradients, strict=True):
        assert_close(row.sum(0), torch.zeros_like(row[0]) if g is None else g, **EXACT)


def test_per_sample_gradients_take_soft_targets(cases, task):
    case = cases["conv-bn"]
    model, batch = case.model(), case.batch(6)
    mixed = task.augment(batch, torch.Generator().manual_seed(0))
    with attached("shift", model, batch) as handle:
        rows = per_sample_gradients(handle, model, task, mixed)
        loss = task.loss(task.forward(model, mixed.inputs), mixed.targets)
        gradients = torch.autograd.grad(loss, list(handle.parameters().values()))
    assert_close([row.mean(0).neg() for row in rows.values()], list(gradients), **EXACT)


def test_per_sample_gradients_of_a_layer_called_twice_add_before_squaring(cases, task):
    case = cases["called-twice"]
    model, batch = case.model(), case.batch(5)
    with attached("mask", model, batch) as handle:
        found = fisher_diagonal(handle, model, task, CleanSet(batch))
        rows = loop(handle, model, task, batch)
    assert_close(found["same.weight"], rows["same.weight"].square().mean(0), **EXACT)


def test_per_sample_gradients_fall_back_where_vmap_cannot_follow(task, cases):
    """A branch on the data itself stops torch.func; single samples do not."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x) * (2.0 if bool(x.sum() > 0) else 1.0)

    model, batch = Branches().double(), cases["tied-linear"].batch(4)
    with attached("weights", model, batch) as handle:
        assert_close(per_sample_gradients(handle, model, task, batch), loop(handle, model, task, batch), **EXACT)


def test_per_sample_gradients_refuse_batchnorm_that_mixes_samples(cases, task):
    case = cases["conv-bn"]
    model, batch = case.model(), case.batch(4)
    model.core[1].train()
    with attached("weights", model, batch) as handle, pytest.raises(UnsupportedModel, match=r"core\.1.*eval"):
        per_sample_gradients(handle, model, task, batch)


def test_twice_differentiable_restores_the_switches(cases):
    before = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    with twice_differentiable(cases["lstm"].model()):
        assert not torch.backends.mkldnn.enabled
    assert (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled) == before
