"""A small network that knows its clean samples, for methods that prune it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unbackdoor.task import Batch


@pytest.fixture(scope="module")
def trained():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = 2 * nn.functional.one_hot(y, 6).double() + 0.2 * torch.randn(60, 6, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)).double().eval()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    assert (model(x).argmax(1) == y).all()
    return model, Batch(x, y)
