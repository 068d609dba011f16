"""Masks against weights that a loop multiplies, for every kind of layer, in float64."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

from unbackdoor.defender.methods.nft.nft import mask_floor
from unbackdoor.defender.reparam import NeuronMask, neuron_mask
from unbackdoor.defender.reparam.attachment import SubstitutedForward
from unbackdoor.defender.reparam.neuron_mask import ScaledOutput
from unbackdoor.errors import NothingTrainable

EXACT = {"rtol": 0, "atol": 1e-10}


@pytest.fixture(autouse=True, params=["scaled", "narrow"])
def engines(request, monkeypatch):
    """Every test with outputs scaled wherever that can be, and with weights substituted where inputs are few."""
    if request.param == "scaled":
        monkeypatch.setattr(neuron_mask, "_NARROW", 0)
    return request.param


def masked(model, batch, **options):
    mask = NeuronMask(model, lambda: model(batch.inputs), **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in mask.parameters().values():
            value.copy_(torch.rand(value.shape, generator=generator, dtype=value.dtype))
    return mask


def test_mask_output_and_gradient_equal_explicitly_multiplied_weights(case, slow, explicit):
    model, batch = case.model(), case.batch()
    mask = masked(model, batch)
    assert len(mask.sites) == case.sites
    values = {n: v.detach().clone().requires_grad_(True) for n, v in mask.parameters().items()}
    with torch.backends.mkldnn.flags(enabled=True, allow_tf32=None, fp32_precision=None):
        expected = functional_call(model, explicit(mask, values, slow.masked), (batch.inputs,))
    with mask:
        found = model(batch.inputs)
        assert_close(found, expected, **EXACT)
        gradients = torch.autograd.grad(found.square().sum(), list(mask.parameters().values()))
    oracle = torch.autograd.grad(expected.square().sum(), list(values.values()))
    assert all(bool(g.abs().sum() > 0) for g in gradients)
    assert_close(list(gradients), list(oracle), **EXACT)


def test_mask_fold_equals_the_attached_output_and_leaves_all_else(case):
    model, batch = case.model(), case.batch()
    before = copy.deepcopy(model.state_dict())
    mask = masked(model, batch)
    touched = {name for name, site in mask.sites.items()}
    with mask:
        attached = model(batch.inputs).detach()
        mask.fold_()
    assert_close(model(batch.inputs).detach(), attached, **EXACT)
    shared = {id(site.weight) for site in mask.sites.values()}
    touched = {n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in shared}
    for name, value in model.state_dict().items():
        if name in touched:
            assert not torch.equal(value, before[name])
        else:
            assert torch.equal(value, before[name]), f"{name} is no site, yet it changed"
    assert not any(name.endswith("bias") for name in touched)


def test_mask_left_without_fold_restores_everything_bit_for_bit(case):
    model, batch = case.model(), case.batch()
    keys = list(model.state_dict())
    classes = [(n, type(m)) for n, m in model.named_modules()]
    attributes = [sorted(vars(m)) for m in model.modules()]
    before, output = copy.deepcopy(model.state_dict()), model(batch.inputs).detach()
    with masked(model, batch):
        assert list(model.state_dict()) == keys
        assert [n for n, _ in model.named_modules()] == [n for n, _ in classes]
        assert all(isinstance(m, cls) for m, (_, cls) in zip(model.modules(), classes, strict=True))
        assert [type(m).__name__ for m in model.modules()] == [cls.__name__ for _, cls in classes]
        assert not any(p.requires_grad for p in model.parameters())
        assert not torch.equal(model(batch.inputs), output)
    assert [(n, type(m)) for n, m in model.named_modules()] == classes
    assert [sorted(vars(m)) for m in model.modules()] == attributes
    assert all(p.requires_grad for p in model.parameters())
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(model(batch.inputs), output)
    assert torch.backends.mha.get_fastpath_enabled()


def test_mask_left_by_an_error_restores_too(cases):
    model, batch = cases["conv2d"].model(), cases["conv2d"].batch()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt), masked(model, batch):
        raise KeyboardInterrupt
    assert type(model.core) is nn.Conv2d
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.requires_grad for p in model.parameters())


def test_mask_of_ones_is_the_identity(case):
    model, batch = case.model(), case.batch()
    expected = model(batch.inputs)
    before = copy.deepcopy(model.state_dict())
    mask = NeuronMask(model, lambda: model(batch.inputs))
    with mask:
        assert_close(model(batch.inputs), expected, **EXACT)
        assert float(mask.distance().detach()) == 0
        mask.fold_()
    assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_mask_engine_is_fast_for_plain_layers_and_substitutes_for_others(cases, engines):
    plain = cases["grouped"].model()
    with masked(plain, cases["grouped"].batch()):
        assert isinstance(plain.core, ScaledOutput if engines == "scaled" else SubstitutedForward)
    for inputs, engine in ((14, SubstitutedForward), (15, ScaledOutput)):  # 9 * 14 = 126 inputs a neuron, 9 * 15 = 135
        wide = nn.Sequential(nn.Conv2d(inputs, 4, 3))
        with NeuronMask(wide, lambda: wide(torch.zeros(1, inputs, 3, 3))):  # noqa: B023 - called at once
            assert isinstance(wide[0], ScaledOutput if engines == "scaled" else engine)
    for name in ("users-conv", "lstm", "attention"):
        model = cases[name].model()
        with masked(model, cases[name].batch()):
            swapped = model.attention if name == "attention" else model.core
            assert isinstance(swapped, SubstitutedForward)


def test_mask_survives_deepcopy_while_attached(cases):
    model, batch = cases["conv2d"].model(), cases["conv2d"].batch()
    with masked(model, batch):
        twin = copy.deepcopy(model)
        assert_close(twin(batch.inputs), model(batch.inputs), rtol=0, atol=0)


def test_mask_leaves_a_weight_tied_to_an_embedding_alone_and_says_so(cases):
    case = cases["tied-embedding"]
    model, batch = case.model(), case.batch()
    mask = masked(model, batch)
    assert set(mask.sites) == {"hidden.weight", "head.weight"}
    assert any("tied" in text and "out.weight" in text for text in mask.notices)
    with mask:
        mask.fold_()
    assert model.out.weight is model.embed.weight


def test_mask_of_tied_linears_is_one_and_keeps_the_tie(cases):
    case = cases["tied-linear"]
    model, batch = case.model(), case.batch()
    mask = masked(model, batch)
    assert len(mask.sites["first.weight"].owners) == 2
    with mask:
        mask.fold_()
    assert model.first.weight is model.second.weight
    assert model.first.weight.data_ptr() == model.second.weight.data_ptr()


def test_mask_respects_frozen_and_skipped_weights(cases):
    case = cases["conv-bn"]
    model, batch = case.model(), case.batch()
    model.core[0].weight.requires_grad_(False)
    mask = NeuronMask(model, lambda: model(batch.inputs), skip=["head.weight"])
    assert list(mask.sites) == ["core.3.weight"]
    assert any("requires_grad=False" in text and "core.0.weight" in text for text in mask.notices)
    with mask:
        pass
    assert not model.core[0].weight.requires_grad
    assert model.core[3].weight.requires_grad


def test_mask_without_any_site_is_an_error():
    model = nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4))
    with pytest.raises(NothingTrainable, match="NeuronMask finds no weight"):
        NeuronMask(model, lambda: model(torch.tensor([[1]])))


def test_mask_depth_follows_execution_not_registration():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.middle, self.first = nn.Linear(3, 2), nn.Linear(3, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(self.middle(self.first(x)))

    model = Backwards()
    mask = NeuronMask(model, lambda: model(torch.rand(1, 4)), floor=mask_floor("exponential", 0.8, 0.5, "absolute"))
    assert [(n, s.depth) for n, s in mask.sites.items()] == [
        ("first.weight", 1),
        ("middle.weight", 2),
        ("last.weight", 3),
    ]
    floors = [0.8 * math.exp(-0.5 * depth) for depth in (1, 2, 3)]
    assert_close(list(mask.floors.values()), floors, rtol=0, atol=1e-12)


def test_mask_depth_of_a_tied_weight_is_its_first_call():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.middle, self.early = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.early.weight = self.late.weight

        def forward(self, x):
            return self.late(self.middle(self.early(x)))

    model = Backwards()
    mask = NeuronMask(model, lambda: model(torch.rand(1, 3)))
    assert {name: site.depth for name, site in mask.sites.items()} == {"late.weight": 1, "middle.weight": 2}


def test_mask_depth_counts_a_layer_with_several_weights_once(cases):
    case = cases["lstm"]
    model, batch = case.model(), case.batch()
    mask = NeuronMask(model, lambda: model(batch.inputs))
    assert {site.depth for name, site in mask.sites.items() if name.startswith("core")} == {1}
    assert mask.sites["head.weight"].depth == 2


def test_mask_project_clamps_to_the_floor_and_to_one(cases):
    case = cases["linear"]
    model, batch = case.model(), case.batch()
    mask = NeuronMask(model, lambda: model(batch.inputs), floor=lambda layer, layers: 0.5 / layer)
    with torch.no_grad():
        for value in mask.parameters().values():
            value.copy_(torch.linspace(-1, 2, len(value)))
    mask.project_()
    first, second = (value.detach() for value in mask.parameters().values())
    assert (float(first.min()), float(first.max())) == (0.5, 1.0)
    assert (float(second.min()), float(second.max())) == (0.25, 1.0)


def test_mask_distance_is_the_sum_of_absolute_differences_from_one(cases):
    case = cases["conv-bn"]
    model, batch = case.model(), case.batch()
    mask = masked(model, batch)
    expected = sum(abs(1 - float(m)) for value in mask.parameters().values() for m in value.detach())
    assert_close(float(mask.distance().detach()), expected, rtol=0, atol=1e-10)


# ------------------------------------------------------------------------------------------- BatchNorm


def test_mask_before_train_mode_batchnorm_changes_nothing_and_in_eval_mode_a_lot():
    """The scale-invariance trap: normalisation divides a filter's scale out again."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)).double()
    x = torch.randn(16, 3, 8, 8, dtype=torch.float64)
    model(x)
    halved = copy.deepcopy(model)
    with torch.no_grad():
        halved[0].weight.mul_(0.5)

    def change(training):
        given, other = copy.deepcopy(model).train(training), copy.deepcopy(halved).train(training)
        with torch.no_grad():
            return float((given(x) - other(x)).abs().max() / given(x).abs().max())

    assert change(training=True) < 1e-3
    assert change(training=False) > 0.2
    mask = NeuronMask(model.eval(), lambda: model(x))
    with torch.no_grad():
        mask.parameters()["0.weight"].fill_(0.5)
    with mask:
        assert_close(model(x), halved.eval()(x), **EXACT)


def test_mask_sees_batchnorm_as_the_affine_map_of_eval_mode(cases):
    case = cases["conv-bn"]
    model, batch = case.model(), case.batch()
    before = {n: b.clone() for n, b in model.named_buffers()}
    mask = NeuronMask(model, lambda: model(batch.inputs))
    expected = model(batch.inputs)
    with mask:
        assert_close(model(batch.inputs), expected, **EXACT)
    assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)


def test_mask_on_the_norm_multiplies_gamma_in_train_mode(cases):
    case = cases["conv-bn"]
    model, batch = case.model(), case.batch(8)
    mask = masked(model, batch, site="norm")
    assert set(mask.sites) == {"core.1.weight", "core.4.weight"}
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.core[1].weight.mul_(mask.parameters()["core.1.weight"])
        twin.core[4].weight.mul_(mask.parameters()["core.4.weight"])
    for index in (1, 4):
        twin.core[index].train()
    with mask:
        assert model.core[1].training
        assert model.core[4].training
        assert not model.core[0].training
        assert_close(model(batch.inputs), twin(batch.inputs), **EXACT)
        mask.fold_()
    model.eval()
    assert_close(model(batch.inputs), twin.eval()(batch.inputs), **EXACT)


def test_mask_on_the_norm_has_a_gradient_in_train_mode(cases):
    case = cases["conv-bn"]
    model, batch = case.model(), case.batch(8)
    with masked(model, batch, site="norm") as mask:
        gradients = torch.autograd.grad(model(batch.inputs).square().sum(), list(mask.parameters().values()))
    assert all(float(g.abs().max()) > 1e-3 for g in gradients)


def test_mask_on_the_norm_needs_an_affine_batchnorm(cases):
    model, batch = cases["linear"].model(), cases["linear"].batch()
    with pytest.raises(NothingTrainable, match="site='weight'"):
        NeuronMask(model, lambda: model(batch.inputs), site="norm")


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_mask_of_a_hidden_unit_scales_its_rows_in_every_gate(kind, gates):
    """The oracle writes each gate's rows out in a loop; in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(kind(3, 4, batch_first=True)).double().eval()
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = NeuronMask(model, lambda: model(x), gates="unit")
    values = {name: torch.rand(4, dtype=torch.float64).requires_grad_() for name in mask.parameters()}
    assert {name: tuple(value.shape) for name, value in mask.parameters().items()} == dict.fromkeys(values, (4,))
    with torch.no_grad():
        for name, value in mask.parameters().items():
            value.copy_(values[name])
    weights = {}
    for name, value in values.items():
        weight = model.get_parameter(name).detach()
        weights[name] = torch.stack([value[row % 4] * weight[row] for row in range(gates * 4)])
    expected = functional_call(model, weights, (x,))[0]
    oracle = torch.autograd.grad(expected.square().sum(), list(values.values()))
    with mask:
        found = model(x)[0]
        assert_close(found, expected, **EXACT)
        gradients = torch.autograd.grad(found.square().sum(), list(mask.parameters().values()))
        assert_close(list(gradients), list(oracle), **EXACT)
        mask.fold_()
    assert_close(model(x)[0], expected, **EXACT)


def test_mask_of_hidden_units_leaves_feed_forward_layers_as_they_are(cases):
    for name in ("grouped", "attention", "conv-bn"):
        model, batch = cases[name].model(), cases[name].batch()
        probe = partial(model, batch.inputs)
        each, unit = (NeuronMask(model, probe, gates=gates).parameters() for gates in ("each", "unit"))
        assert {n: v.shape for n, v in each.items()} == {n: v.shape for n, v in unit.items()}
