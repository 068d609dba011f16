"""The weights themselves as a handle."""

from __future__ import annotations

import copy

import torch
from torch.func import functional_call
from torch.testing import assert_close

from unbackdoor.defender.reparam import FullWeights


def test_full_weights_substituted_equals_a_functional_call(case):
    model, batch = case.model(), case.batch()
    weights = FullWeights(model)
    values = {name: value.detach() + 0.1 for name, value in weights.parameters().items()}
    expected = functional_call(model, values, (batch.inputs,))
    before = model(batch.inputs)
    with weights, weights.substituted(values):
        assert_close(model(batch.inputs), expected, rtol=0, atol=1e-10)
    assert torch.equal(model(batch.inputs), before)


def test_full_weights_come_back_unless_folded(cases):
    model = cases["lstm"].model()
    before = copy.deepcopy(model.state_dict())
    for fold in (False, True):
        with FullWeights(model) as weights:
            with torch.no_grad():
                for value in weights.parameters().values():
                    value.add_(1.0)
            if fold:
                weights.fold_()
        moved = [not torch.equal(value, before[name]) for name, value in model.state_dict().items()]
        assert all(moved) if fold else not any(moved)


def test_full_weights_leave_frozen_and_skipped_ones_out(cases):
    model = cases["conv-bn"].model()
    model.head.bias.requires_grad_(False)
    names = set(FullWeights(model, skip=["core.1*"]).parameters())
    expected = {n for n, _ in model.named_parameters()} - {"head.bias", "core.1.weight", "core.1.bias"}
    assert names == expected


def test_full_weights_hold_a_tied_weight_once(cases):
    model = cases["tied-linear"].model()
    assert "second.weight" not in FullWeights(model).parameters()
