"""Few steps of any method."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unbackdoor.registry import method


@pytest.fixture
def quick():
    """``quick(name, **wanted)``: few steps and small batches, as far as the method has such options."""

    def options(name, **wanted):
        known = method(name).__dataclass_fields__
        return {key: value for key, value in ({"steps": 2, "batch_size": 4} | wanted).items() if key in known}

    return options


@pytest.fixture
def mlp_of_six():
    """``mlp_of_six()``: a small network for 6 features and 3 classes, the same every time."""

    def made():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    return made
