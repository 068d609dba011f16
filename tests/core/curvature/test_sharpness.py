"""The ascent step by hand, and the gradient after it against a model whose weights were really moved."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unbackdoor.defender.curvature.sharpness import SharpnessAware, ascent
from unbackdoor.defender.purifier import Run
from unbackdoor.defender.reparam import FullWeights
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask, tiny_models

EXACT = {"rtol": 0, "atol": 1e-10}
TASK = ClassificationTask()


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_ascent_has_the_length_of_the_radius_along_the_gradient():
    moves = ascent([double(5.0, 7.0), double(1.0)], [double(2.0, 3.0), double(6.0)], 0.7, adaptive=False)
    assert_close(moves[0], double(0.2, 0.3), **EXACT)  # ||(2, 3, 6)|| = 7
    assert_close(moves[1], double(0.6), **EXACT)


def test_adaptive_ascent_is_measured_in_units_of_the_weights():
    """|w| g = (4, -3, 0), norm 5; e = rho w^2 g / 5."""
    (move,) = ascent([double(-2.0, 1.0, 0.0)], [double(2.0, -3.0, 9.0)], 5.0, adaptive=True)
    assert_close(move, double(8.0, -3.0, 0.0), **EXACT)


def test_ascent_stays_where_nothing_has_a_gradient():
    assert ascent([double(1.0)], [None], 1.0, adaptive=False) == [None]
    (still,) = ascent([double(1.0)], [double(0.0)], 1.0, adaptive=True)
    assert_close(still, double(0.0), **EXACT)


def material(name="conv-bn"):
    tiny = tiny_models()[name]
    model = tiny.build().double()
    run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), model)
    return model, tiny.batch(6, dtype=torch.float64), run


def oracle(model, batch):
    loss = TASK.loss(TASK.forward(model, batch.inputs), batch.targets)
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.7])
@pytest.mark.parametrize("name", ["conv-bn", "lstm", "tied"])
def test_objective_has_the_gradient_of_the_moved_model(name, adaptive, share):
    model, batch, run = material(name)
    weights = FullWeights(model)
    loss = SharpnessAware(model, weights, TASK, run, 0.3, adaptive, share=share)(0, batch)
    found = torch.autograd.grad(loss, list(weights.parameters().values()))
    here = oracle(model, batch)
    moved = copy.deepcopy(model)
    parameters = list(model.parameters())
    scaled = [w.detach().abs() * g if adaptive else g for w, g in zip(parameters, here, strict=True)]
    norm = sum(g.square().sum() for g in scaled).sqrt()
    with torch.no_grad():
        for parameter, g, s in zip(moved.parameters(), here, scaled, strict=True):
            parameter += 0.3 * (parameter.abs() * s if adaptive else g) / norm
    there = oracle(moved, batch)
    for a, g, h in zip(found, here, there, strict=True):
        assert_close(a, (1 - share) * g + share * h, **EXACT)


def test_radius_of_zero_is_plain_fine_tuning():
    model, batch, run = material()
    loss = SharpnessAware(model, FullWeights(model), TASK, run, 0.0)(0, batch)
    for a, b in zip(torch.autograd.grad(loss, list(model.parameters())), oracle(model, batch), strict=True):
        assert_close(a, b, **EXACT)


def test_running_statistics_move_in_the_first_pass_alone():
    model, batch, run = material()
    once = copy.deepcopy(model)
    for each in (model, once):
        for module in each.modules():
            module.train(isinstance(module, nn.BatchNorm2d))
    SharpnessAware(model, FullWeights(model), TASK, run, 0.3)(0, Batch(batch.inputs, batch.targets))
    once(batch.inputs)
    for (name, a), b in zip(model.named_buffers(), once.buffers(), strict=True):
        assert_close(a, b, **EXACT, msg=name)


@pytest.mark.parametrize("wrong", [{"radius": -1.0}, {"radius": float("nan")}, {"radius": 1.0, "share": 1.5}])
def test_values_out_of_range_are_refused(wrong):
    model, _, run = material()
    with pytest.raises(BadOption):
        SharpnessAware(model, FullWeights(model), TASK, run, **wrong)
