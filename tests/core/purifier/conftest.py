"""A small network with BatchNorm and dropout, and a method that does what a test wants."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from unbackdoor.defender.purifier import Purifier
from unbackdoor.registry import method


@dataclass(frozen=True, kw_only=True)
class Custom(Purifier):
    """Runs whatever a test gives it."""

    name = "custom"
    action = None

    def _purify(self, model, clean, task, run):
        type(self).action(model, run)


def made(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)]
        return nn.Sequential(*layers)


@pytest.fixture
def mlp():
    """``mlp(seed=0)``: a network for 6 features and 3 classes, in train mode."""
    return made


@pytest.fixture
def quick():
    """``quick(name, **wanted)``: few steps and small batches, as far as the method has such options."""

    def options(name, **wanted):
        known = method(name).__dataclass_fields__
        return {key: value for key, value in ({"steps": 2, "batch_size": 4} | wanted).items() if key in known}

    return options


@pytest.fixture
def told():
    """``told(report)``: whether a purification says that it left the model as it was."""
    return lambda report: report.given_back or any("nothing was pruned" in text for text in report.notices)


@pytest.fixture
def state_of():
    """``state_of(model)``: a copy of its state dict."""
    return lambda model: {n: v.detach().clone() for n, v in model.state_dict().items()}


@pytest.fixture
def purifier_that():
    """``purifier_that(action)``: a method that calls ``action(model, run)``."""
    return lambda action: type("Custom", (Custom,), {"action": staticmethod(action)})()
