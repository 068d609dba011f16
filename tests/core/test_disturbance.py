"""Disturbed inputs: who reads them, and what a disturber may ask."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.data import CleanSet
from unbackdoor.defender.clean_loss import CleanLoss
from unbackdoor.defender.disturbance import disturbed_loss, started
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


@pytest.fixture
def model():
    linear = nn.Linear(4, 3).double()
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return linear


@pytest.fixture
def batch(generator):
    return Batch(torch.randn(5, 4, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0]))


class Noisy(ClassificationTask):
    """Adds noise of the generator."""

    def disturb(self, inputs, generator):
        return inputs + torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)


def test_a_task_without_a_disturber_of_its_own_is_asked_for_its_disturbances(model, batch):
    found = disturbed_loss(model, Noisy(), batch.inputs, [(1.0, batch.targets)], Noisy().disturber(seeded()))
    read = batch.inputs + torch.randn(batch.inputs.shape, generator=seeded(), dtype=torch.float64)
    assert_close(found, nn.functional.cross_entropy(model(read), batch.targets), rtol=0, atol=1e-12)


def test_without_a_disturber_inputs_are_read_as_they_are(model, batch):
    found = disturbed_loss(model, Noisy(), batch.inputs, [(1.0, batch.targets)], None)
    assert_close(found, nn.functional.cross_entropy(model(batch.inputs), batch.targets), rtol=0, atol=1e-12)


def test_targets_count_by_their_shares(model, batch):
    soft = torch.softmax(torch.randn(5, 3, dtype=torch.float64, generator=seeded()), 1)
    found = disturbed_loss(model, TASK, batch.inputs, [(0.3, batch.targets), (0.7, soft)], None)
    logs = model(batch.inputs).log_softmax(1)
    hard = nn.functional.nll_loss(logs, batch.targets)
    assert_close(found, 0.3 * hard - 0.7 * (soft * logs).sum(1).mean(), rtol=0, atol=1e-12)


def test_a_disturber_can_ask_what_an_attempt_would_cost(model, batch):
    asked = []

    def worst_of_two(inputs, losses):
        attempts = [inputs + 3.0, inputs - 3.0]
        costs = torch.stack([losses(attempt) for attempt in attempts])
        asked.append(costs)
        assert not costs.requires_grad
        return torch.where((costs[0] > costs[1]).unsqueeze(1), *attempts)

    found = disturbed_loss(model, TASK, batch.inputs, [(1.0, batch.targets)], worst_of_two)
    assert_close(found.detach(), asked[0].amax(0).mean(), rtol=0, atol=1e-12)
    logs = model(batch.inputs + 3.0).log_softmax(1)
    assert_close(asked[0][0], -logs[torch.arange(5), batch.targets].detach(), rtol=0, atol=1e-12)


def test_costs_have_a_graph_if_the_inputs_have_one(model, batch):
    def sharper(inputs, losses):
        moved = inputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(losses(moved).sum(), moved)
        assert_close(losses(inputs + 1e-6 * slope) - losses(inputs), 1e-6 * slope.square().sum(1), rtol=1e-3, atol=0)
        return inputs + slope

    found = disturbed_loss(model, TASK, batch.inputs, [(1.0, batch.targets)], sharper)
    assert found > disturbed_loss(model, TASK, batch.inputs, [(1.0, batch.targets)], None)


def test_a_search_reads_batchnorm_as_a_test_does():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    inputs, targets = torch.randn(5, 4, dtype=torch.float64, generator=seeded()) + 3.0, torch.tensor([0, 1, 2, 1, 0])
    before, costs = model[0].running_mean.clone(), []

    def asking(inputs, losses):
        costs.append(losses(inputs))
        assert torch.equal(model[0].running_mean, before)
        return inputs

    found = disturbed_loss(model, TASK, inputs, [(1.0, targets)], asking)
    assert model[0].training
    assert not torch.equal(model[0].running_mean, before)
    logs = model.eval()[1](inputs / (1 + 1e-5) ** 0.5).log_softmax(1)
    assert_close(costs[0], -logs[torch.arange(5), targets].detach(), rtol=0, atol=1e-12)
    assert abs(found - costs[0].mean()) > 1e-3


def test_a_look_takes_no_more_samples_at_once_than_a_step(model, batch, generator):
    seen = []

    class Looking(Told):
        def look(self, samples):
            seen.extend(len(inputs) for (inputs, _), _ in zip(samples, range(3), strict=False))

    class Task(ClassificationTask):
        def disturber(self, generator):
            return Looking()

    clean = CleanSet(Batch(batch.inputs.repeat(20, 1), batch.targets.repeat(20)))
    for size in (16, 1000):
        started(Task(), model, clean, generator, size)
    assert seen == [16] * 3 + [64] * 3


@pytest.mark.parametrize("distil", [0.0, 0.5, 1.0])
def test_one_disturber_serves_a_whole_purification(model, batch, run, distil):
    made = []

    class Counting(ClassificationTask):
        def disturber(self, generator):
            made.append(generator)
            return Told()

    loss = CleanLoss.of(
        model, Counting(), CleanSet(batch), run, distil=distil, mixup=1.0, weights_move=True, disturb=True
    )
    for _ in range(2):
        samples, objective = loss.prepare(2, 5, 1.0)
        assert bool(torch.isfinite(objective(next(samples.batches(5, run.generator)))))
    assert made == [run.generator]
    assert CleanLoss.of(model, Counting(), CleanSet(batch), run, distil=0.0, mixup=1.0).disturber is None


class Told:
    """Finds something."""

    def look(self, samples):
        pass

    def __call__(self, inputs, losses):
        return inputs

    def left(self, inputs, losses):
        return None

    def findings(self):
        return ["something was found"]


@pytest.mark.parametrize("method", ["ft", "nft"])
def test_what_a_disturber_found_is_in_the_report(model, batch, method):
    class Searching(ClassificationTask):
        def disturber(self, generator):
            return Told()

    options = {"steps": 2, "batch_size": 4}
    model.float()
    clean = (batch.inputs.float().repeat(4, 1), batch.targets.repeat(4))
    _, report = unbackdoor.purify(model, clean, task=Searching(), method=method, **options)
    assert "something was found" in report.notices
    _, report = unbackdoor.purify(model, clean, task=Searching(), method=method, disturb=False, **options)
    assert "something was found" not in report.notices


def test_a_disturber_looks_at_the_given_model_by_its_labels(model, batch, generator):
    seen = []

    class Looking(Told):
        def look(self, samples):
            inputs, losses = next(samples)
            seen.append((inputs, losses(inputs * 2)))

    class Searching(ClassificationTask):
        def disturber(self, generator):
            return Looking()

    started(Searching(), model, CleanSet(batch), generator)
    inputs, losses = seen[0]
    place = (inputs.unsqueeze(1) == batch.inputs).all(2).int().argmax(1)
    expected = nn.functional.cross_entropy(model(inputs * 2), batch.targets[place], reduction="none")
    assert_close(losses, expected.detach(), rtol=0, atol=1e-12)
    assert not losses.requires_grad


def test_what_looks_at_nothing_draws_nothing(model, batch):
    generator = seeded()
    started(Noisy(), model, CleanSet(batch), generator)
    assert torch.equal(generator.get_state(), seeded().get_state())


def seeded():
    return torch.Generator().manual_seed(7)
