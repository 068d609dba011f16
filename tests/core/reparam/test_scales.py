"""Masks on the scales of layers that normalise each sample by itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from unbackdoor.defender.reparam import NeuronMask
from unbackdoor.errors import NothingTrainable

EXACT = {"rtol": 0, "atol": 1e-12}


class Block(nn.Module):
    """A convolution whose output is normalised sample by sample."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(2, 4, 3), norm, nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu())


NORMS = {
    "group": lambda: nn.GroupNorm(2, 4, eps=0),
    "layer": lambda: nn.LayerNorm((4, 3, 3), eps=0),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True, eps=0),
}


@pytest.fixture(params=NORMS)
def model(request):
    torch.manual_seed(0)
    block = Block(NORMS[request.param]()).double().eval()
    with torch.no_grad():
        block.norm.weight.uniform_(0.5, 1.5)
        block.norm.bias.uniform_(-1, 1)
        block.first.bias.zero_()
    return block


INPUTS = torch.rand(2, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_scales_have_masks_on_request_alone(model):
    assert "norm.weight" not in NeuronMask(model, lambda: model(INPUTS)).sites
    mask = NeuronMask(model, lambda: model(INPUTS), scales=True)
    assert mask.parameters()["norm.weight"].shape == (4,)
    assert "norm.weight" not in NeuronMask(model, lambda: model(INPUTS), scales=True, skip=["norm.*"]).sites


def test_scale_mask_output_gradient_and_fold_equal_a_multiplied_scale(model):
    mask = NeuronMask(model, lambda: model(INPUTS), scales=True, skip=["first.*", "last.*"])
    (value,) = mask.parameters().values()
    with torch.no_grad():
        value.copy_(torch.tensor([0.2, 1.0, 0.0, 0.7]))
    wanted, scale = copy.deepcopy(model), value.detach().clone().requires_grad_(True)
    factor = scale.reshape(-1, *[1] * (model.norm.weight.ndim - 1))
    expected = torch.func.functional_call(wanted, {"norm.weight": model.norm.weight.detach() * factor}, (INPUTS,))
    with mask:
        found = model(INPUTS)
        assert_close(found, expected, **EXACT)
        assert_close(
            torch.autograd.grad(found.square().sum(), value),
            torch.autograd.grad(expected.square().sum(), scale),
            **EXACT,
        )
        mask.fold_()
    assert_close(model(INPUTS), expected, **EXACT)
    assert_close(model.norm.bias, wanted.norm.bias, rtol=0, atol=0)


def test_attenuation_before_a_normalisation_is_undone_unless_its_scale_is_masked(model):
    """Why the scales have masks: without them the rounds of attenuation do nothing here."""
    given = model.norm(model.first(INPUTS)).detach()
    alone = isinstance(model.norm, nn.InstanceNorm2d)  # it divides each neuron by itself: no mask is left before it
    if alone:
        with pytest.raises(NothingTrainable, match=r"divides a factor of a neuron's weights out again: first\.weight"):
            NeuronMask(model, lambda: model(INPUTS), skip=["last.*"])
    for scales in (True,) if alone else (False, True):
        mask = NeuronMask(model, lambda: model(INPUTS), scales=scales, skip=["last.*"])
        with mask:
            mask.attenuate_(0.5)
            now = model.norm(model.first(INPUTS)).detach()
        bias = model.norm.bias.detach()
        bias = bias if bias.ndim == 3 else bias.view(-1, 1, 1)
        assert_close(now - bias, (0.5 if scales else 1.0) * (given - bias), **EXACT)


def test_scale_that_is_read_without_its_layer_is_masked_where_it_is_read():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)

        def forward(self, x):
            return functional.layer_norm(self.linear(x), (4,), self.norm.weight, self.norm.bias)

    model, inputs = Reads().double(), torch.rand(2, 3, dtype=torch.float64)
    mask = NeuronMask(model, lambda: model(inputs), scales=True)
    assert set(mask.sites) == {"linear.weight", "norm.weight"}
    mask.attenuate_(0.5)
    with mask:
        attached = model(inputs).detach()
        mask.fold_()
    assert_close(model(inputs).detach(), attached, **EXACT)
