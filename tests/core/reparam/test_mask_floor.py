"""The lower bound of masks, which falls with depth, and that a purification obeys it."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unbackdoor.defender.methods.nft import NFT
from unbackdoor.defender.methods.nft.nft import mask_floor


@pytest.mark.parametrize(("layer", "expected"), [(1, 0.485), (2, 0.294), (4, 0.108), (8, 0.0147), (12, 0.002)])
def test_floor_has_the_papers_numbers(layer, expected):
    floor = mask_floor("exponential", 0.8, 0.5, "absolute")
    assert_close(floor(layer, 20), expected, rtol=0, atol=5e-4 if expected > 0.02 else 5e-5)


@pytest.mark.parametrize("schedule", ["exponential", "linear", "cosine", "logarithmic", "cubic"])
def test_floor_falls_with_depth_within_its_range(schedule):
    floor = mask_floor(schedule, 0.8, 0.5, "absolute")
    values = [floor(layer, 12) for layer in range(1, 13)]
    assert all(a > b for a, b in itertools.pairwise(values))
    assert 0 <= min(values) <= max(values) <= 0.8
    if schedule != "exponential":
        assert_close([values[0], values[-1]], [0.8, 0.0], rtol=0, atol=1e-12)
    assert math.isfinite(floor(1, 1))


def test_floor_constant_stays():
    floor = mask_floor("constant", 0.3, 0.5, "absolute")
    assert {floor(layer, 5) for layer in range(1, 6)} == {0.3}


def test_floor_relative_makes_every_network_as_deep_as_the_papers():
    absolute = mask_floor("exponential", 0.8, 0.5, "absolute")
    relative = mask_floor("exponential", 0.8, 0.5, "relative")
    assert_close([relative(n, 20) for n in (1, 10, 20)], [absolute(n, 20) for n in (1, 10, 20)], rtol=0, atol=1e-12)
    assert_close(relative(50, 100), absolute(10, 20), rtol=0, atol=1e-12)
    assert relative(5, 100) > absolute(5, 100)


def test_floor_holds_at_the_end_of_a_run(task, clean):
    """The floor is not only computed but obeyed: a large rate pushes masks onto it, never below."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    before = copy.deepcopy(model)
    NFT(steps=20, batch_size=12, lr=50.0, alpha=0.8, mixup=0.0).purify(model, clean, task)
    for index, layer in ((0, 1), (2, 2)):
        ratio = model[index].weight.detach().norm(dim=1) / before[index].weight.detach().norm(dim=1)
        floor = 0.8 * math.exp(-0.5 * layer)
        assert float(ratio.min()) >= floor - 1e-6
        assert float(ratio.max()) <= 1 + 1e-6
        assert float(ratio.min()) <= floor + 1e-4, "no mask reached its floor, so this proves nothing"
