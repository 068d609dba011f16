"""Balls by hand, and the worst perturbation of a linear model, which is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unbackdoor.data import CleanSet
from unbackdoor.defender.input_space import InputSpace
from unbackdoor.defender.perturbation import Ball, ascend, spread, universal
from unbackdoor.errors import BadOption
from unbackdoor.testing import ClassificationTask


def test_projection_by_hand():
    delta = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    assert_close(Ball(1.0).project(delta), torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    assert_close(Ball(0.35, "linf").project(delta), torch.tensor([[0.35, 0.35], [0.3, 0.35]]))


def test_steepest_direction_by_hand():
    slope = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert_close(Ball(1.0).steepest(slope), torch.tensor([[0.6, -0.8], [0.0, 0.0]]))
    assert_close(Ball(1.0, "linf").steepest(slope), torch.tensor([[1.0, -1.0], [0.0, 0.0]]))


def test_ascent_ends_where_a_linear_function_is_largest_in_the_ball():
    slope = torch.tensor([[1.0, 2.0, -2.0]], dtype=torch.float64)
    for ball, best in ((Ball(0.6), 0.2 * slope), (Ball(0.5, "linf"), 0.5 * slope.sign())):
        found = ascend(
            lambda d: (d * slope).sum(), ball.draw(slope, torch.Generator().manual_seed(0)), ball, steps=40, reach=8
        )
        assert_close(found, best, rtol=0, atol=0.02)


def test_universal_perturbation_of_a_linear_model_points_along_its_weights():
    """Two classes: the loss of all samples of class 0 grows along ``w_1 - w_0``."""
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
        model.bias.zero_()
    inputs = torch.rand(20, 4, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    inputs[0], inputs[1] = -5.0, 5.0  # so that the range of the clean samples cuts nothing
    clean = CleanSet.of((inputs, torch.zeros(20, dtype=torch.long)))
    space = InputSpace.of(ClassificationTask(), clean)
    ball = Ball(0.3)
    generator = torch.Generator().manual_seed(0)
    found = universal(model, space, lambda: clean.samples[slice(2, 20)], ball, generator, steps=30)
    best = torch.tensor([[-0.3, 0.3, 0.0, 0.0]]) / 2**0.5
    assert float(found.norm()) == pytest.approx(0.3)
    assert float((found * best).sum()) > 0.98 * 0.3**2
    assert all(p.grad is None for p in model.parameters())


def test_size_is_in_standard_deviations_of_the_clean_inputs():
    inputs = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    clean = CleanSet.of((inputs, torch.arange(2)))
    space = InputSpace.of(ClassificationTask(), clean)
    assert spread(space, clean) == pytest.approx(1.0)
    assert Ball.of(space, clean, 0.5).radius == pytest.approx(0.5 * 2**0.5)
    assert Ball.of(space, clean, 0.5, "linf").radius == pytest.approx(0.5)


def test_ball_without_radius_is_refused():
    with pytest.raises(BadOption, match="radius"):
        Ball(0.0)
