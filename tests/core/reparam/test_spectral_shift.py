"""Shifts against explicitly assembled ``U diag(relu(s + delta)) V^T``, and the two engines against each other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from unbackdoor.defender.reparam import SpectralShift
from unbackdoor.defender.reparam.attachment import SubstitutedForward
from unbackdoor.defender.reparam.neuron_mask import _PLAIN
from unbackdoor.defender.reparam.spectral_shift import FactoredForward

EXACT = {"rtol": 0, "atol": 1e-10}


class Factored(SpectralShift):
    """The fast engine wherever it can run."""

    def engine(self, site, layer):
        return FactoredForward if type(layer) in _PLAIN else SubstitutedForward


class Dense(SpectralShift):
    """The slow engine everywhere."""

    def engine(self, site, layer):
        return SubstitutedForward


def shifted(kind, model, batch, *, scale=0.5, **options):
    shift = kind(model, lambda: model(batch.inputs), **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in shift.parameters().values():
            value.copy_(scale * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return shift


@pytest.mark.parametrize("kind", [Factored, Dense, SpectralShift])
def test_shift_output_and_gradient_equal_explicitly_assembled_weights(case, kind, slow, explicit):
    model, batch = case.model(), case.batch()
    shift = shifted(kind, model, batch)
    assert len(shift.sites) == case.sites
    values = {n: v.detach().clone().requires_grad_(True) for n, v in shift.parameters().items()}
    expected = functional_call(model, explicit(shift, values, slow.shifted), (batch.inputs,))
    with shift:
        found = model(batch.inputs)
        assert_close(found, expected, **EXACT)
        gradients = torch.autograd.grad(found.square().sum(), list(shift.parameters().values()))
    oracle = torch.autograd.grad(expected.square().sum(), list(values.values()))
    assert_close(list(gradients), list(oracle), **EXACT)


def test_shift_fold_equals_the_attached_output_and_touches_sites_alone(case):
    model, batch = case.model(), case.batch()
    before = copy.deepcopy(model.state_dict())
    shift = shifted(SpectralShift, model, batch)
    with shift:
        attached = model(batch.inputs).detach()
        shift.fold_()
    assert_close(model(batch.inputs).detach(), attached, **EXACT)
    shared = {id(site.weight) for site in shift.sites.values()}
    touched = {n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in shared}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in touched), name


def test_shift_of_zero_is_the_identity_and_its_fold_changes_no_bit(case):
    model, batch = case.model(), case.batch()
    before, expected = copy.deepcopy(model.state_dict()), model(batch.inputs).detach()
    shift = SpectralShift(model, lambda: model(batch.inputs))
    with shift:
        assert_close(model(batch.inputs).detach(), expected, **EXACT)
        shift.fold_()
    assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_shift_left_without_fold_restores_everything_bit_for_bit(case):
    model, batch = case.model(), case.batch()
    classes = [(n, type(m)) for n, m in model.named_modules()]
    before, output = copy.deepcopy(model.state_dict()), model(batch.inputs).detach()
    with shifted(SpectralShift, model, batch):
        assert list(model.state_dict()) == list(before)
        assert not torch.equal(model(batch.inputs), output)
    assert [(n, type(m)) for n, m in model.named_modules()] == classes
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(model(batch.inputs), output)


def test_shift_relative_equals_absolute_in_units_of_the_singular_value(case):
    model, batch = case.model(), case.batch()
    relative = shifted(SpectralShift, model, batch, relative=True)
    absolute = SpectralShift(model, lambda: model(batch.inputs))
    with torch.no_grad():
        for name, value in absolute.parameters().items():
            value.copy_(relative.parameters()[name] * absolute.factors[name].singular)
    with relative:
        found = model(batch.inputs).detach()
    with absolute:
        assert_close(found, model(batch.inputs).detach(), **EXACT)


def test_shift_below_minus_s_removes_the_direction_and_stops_its_gradient(cases):
    case = cases["conv2d"]
    model, batch = case.model(), case.batch()
    shift = SpectralShift(model, lambda: model(batch.inputs))
    site, value = shift.sites["core.weight"], shift.parameters()["core.weight"]
    with torch.no_grad():
        value[0, 0] = -2 * shift.factors["core.weight"].singular[0, 0]
    rank = torch.linalg.matrix_rank(site.layout.to_matrix(shift.effective(site, value).detach()))
    assert int(rank) == value.shape[1] - 1
    with shift:
        (gradient,) = torch.autograd.grad(model(batch.inputs).square().sum(), [value])
    assert float(gradient[0, 0]) == 0
    assert float(gradient[0, 1].abs()) > 0


@pytest.mark.parametrize("kind", [Factored, Dense])
def test_shift_of_a_rank_deficient_weight_leaves_dead_directions_dead(kind):
    torch.manual_seed(0)
    model = nn.Linear(6, 5).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(5, 2).double() @ torch.randn(2, 6).double())
    x, before = torch.randn(4, 6, dtype=torch.float64), model.weight.detach().clone()
    shift = kind(model, lambda: model(x))
    assert shift.factors["weight"].singular[0, 2:].abs().max() < 1e-12
    with shift:
        gradient = torch.autograd.grad(model(x).square().sum(), list(shift.parameters().values()))[0]
        shift.fold_()
    assert torch.isfinite(gradient).all()
    assert torch.equal(model.weight.detach(), before)
    zero = nn.Linear(3, 3).double()
    nn.init.zeros_(zero.weight)
    dead = kind(zero, lambda: zero(x[:, :3]))
    with dead:
        gradient = torch.autograd.grad(zero(x[:, :3]).square().sum(), list(dead.parameters().values()))[0]
    assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("layer", "factored"),
    [
        (lambda: nn.Conv2d(16, 16, 3), True),
        (lambda: nn.Linear(16, 16), False),
        (lambda: nn.Linear(8, 64), True),
        (lambda: nn.Linear(64, 8), True),
    ],
)
def test_shift_engine_follows_the_cost_rule(layer, factored):
    model = layer()
    x = torch.rand(2, model.weight.shape[1], *[5] * (model.weight.ndim - 2))
    rows, columns = model.weight.shape[0], model.weight[0].numel()
    rank = min(rows, columns)
    assert factored == (2 * rank * (columns + rows) < 3 * columns * rows)
    with SpectralShift(model, lambda: model(x)):
        assert isinstance(model, FactoredForward) == factored


def test_shift_values_are_one_for_each_singular_value_of_each_group(cases):
    shapes = {"grouped": (2, 3), "depthwise": (3, 2), "transposed2d": (1, 5), "lstm": (4, 3), "attention": (3, 4)}
    for name, shape in shapes.items():
        model, batch = cases[name].model(), cases[name].batch()
        shift = SpectralShift(model, lambda model=model, batch=batch: model(batch.inputs))
        assert tuple(next(iter(shift.parameters().values())).shape) == shape, name


def test_shift_decomposition_gives_the_weight_back(case):
    model, batch = case.model(), case.batch()
    shift = SpectralShift(model, lambda: model(batch.inputs))
    for name, site in shift.sites.items():
        zero = torch.zeros_like(shift.parameters()[name])
        assert_close(shift.effective(site, zero), site.weight.detach(), **EXACT)
        assert shift.factors[name].singular.diff(dim=1).max() <= 0 or shift.factors[name].singular.shape[1] == 1


def test_shift_in_half_of_the_spatial_forms_runs_unbatched():
    model = nn.Conv2d(4, 6, 3, groups=2).double()
    x = torch.randn(4, 5, 5, dtype=torch.float64)
    with shifted(Factored, model, type("B", (), {"inputs": x})) as shift:
        found = model(x)
        with shift.substituted({}):
            assert_close(model(x), found, rtol=0, atol=0)
        shift.fold_()
    assert_close(model(x), found, **EXACT)
