"""What a purification needs is estimated before anything is copied, and refused where it is not there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import unbackdoor
from unbackdoor.data import CleanSet
from unbackdoor.defender.methods.ft import FT
from unbackdoor.defender.run import Run
from unbackdoor.errors import PreflightFailed
from unbackdoor.network import estimate as estimating
from unbackdoor.network.estimate import COPIES, estimate, free_memory, weight_bytes
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


def made(width=64, depth=3):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 3)).eval()


def drawn(count=40, width=64):
    targets = torch.arange(count) % 3
    return Batch(torch.rand(count, width) + nn.functional.one_hot(targets, width), targets)


def test_free_memory_is_known_here_and_plausible():
    free = free_memory(torch.device("cpu"))
    assert free is not None
    assert 2**20 < free < 2**50
    assert free_memory(torch.device("meta")) is None


def test_weights_count_in_single_precision_and_once_where_they_are_tied():
    model = made().half()
    total = sum(p.numel() for p in model.parameters())
    assert weight_bytes(model) == 4 * total
    model[2].weight = model[0].weight
    assert weight_bytes(model) == 4 * (total - 64 * 64)


def test_activations_are_those_that_the_backward_pass_needs():
    """Each hidden layer keeps its input and the output of its activation, of which the next one's input is the same."""
    found = estimate(made(), CleanSet(drawn()), TASK, steps=10, batch_size=1000, passes=3)
    activations = found.needed - (COPIES - 1) * weight_bytes(made())
    kept = 1000 * 4 * (3 * 64 + 3)  # the outputs of three activations and the log-softmax
    assert kept / 2 <= activations <= 2 * kept


def test_estimate_changes_nothing_of_the_model():
    model = made()
    before = copy.deepcopy(model.state_dict())
    estimate(model, CleanSet(drawn()), TASK, steps=10, batch_size=16, passes=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_time_grows_with_steps_and_with_the_batch(monkeypatch):
    monkeypatch.setattr(estimating, "_seconds_a_sample", lambda *_: 0.01)
    found = estimate(made(), CleanSet(drawn()), TASK, steps=100, batch_size=32, passes=4)
    assert found.seconds == pytest.approx(0.01 * 100 * 32 * 4)


def test_purify_refuses_a_model_that_has_no_room_before_it_is_copied(monkeypatch):
    monkeypatch.setattr(estimating, "free_memory", lambda _: COPIES * weight_bytes(made()) - 1)
    monkeypatch.setattr(unbackdoor, "copied", lambda _: pytest.fail("it was copied"))
    with pytest.raises(PreflightFailed, match=r"needs about 0.0 GiB of memory.*--batch-size.*--anyway"):
        unbackdoor.purify(made(), drawn(), task=TASK, method="ft", steps=1)


def test_purify_refuses_a_batch_that_has_no_room(monkeypatch):
    monkeypatch.setattr(estimating, "free_memory", lambda _: COPIES * weight_bytes(made()) + 10**6)
    with pytest.raises(PreflightFailed, match="activations of one batch"):
        unbackdoor.purify(made(), drawn(), task=TASK, method="ft", steps=1, batch_size=10**5)


def test_shortage_is_overruled_on_request(monkeypatch):
    monkeypatch.setattr(estimating, "free_memory", lambda _: 1)
    _, report = unbackdoor.purify(made(), drawn(), task=TASK, method="ft", steps=1, batch_size=8, anyway=True)
    assert "GiB" in report.overruled[0]


def test_memory_that_is_not_known_stops_nothing(monkeypatch):
    monkeypatch.setattr(estimating, "free_memory", lambda _: None)
    unbackdoor.purify(made(), drawn(), task=TASK, method="ft", steps=1, batch_size=8)


def test_watcher_of_a_long_run_is_told_at_step_0():
    told = []
    run = Run(torch.Generator(), torch.device("cpu"), made(), told.append)
    run.expect(2.0, 100)
    assert told == []
    run.expect(300.0, 100)
    assert [(p.step, p.steps, p.message, dict(p.scalars)) for p in told] == [
        (0, 100, "about 5 min", {"expected_seconds": 300.0})
    ]
    assert run.log == []


def test_short_run_begins_with_its_first_step():
    told = []
    FT(steps=4, batch_size=8).purify(made(), drawn(), TASK, watch=lambda p: told.append(p.step))
    assert told[0] == 1
