"""SAU: both levels of its objective against loops in float64 and sums by hand, and which tasks it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unbackdoor.data import CleanSet
from unbackdoor.defender.input_space import InputSpace
from unbackdoor.defender.methods.sau import SAU
from unbackdoor.defender.methods.sau.sau import SharedExamples, divergence, other_answers
from unbackdoor.defender.perturbation import Ball
from unbackdoor.defender.reparam import FullWeights
from unbackdoor.errors import BadOption, UnsupportedTask
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


def network(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3, bias=False)).double().eval()


def batch_of(count=24):
    generator = torch.Generator().manual_seed(3)
    return Batch(torch.rand(count, 4, generator=generator, dtype=torch.float64), torch.arange(count) % 3)


@pytest.fixture
def scene(run):
    """A tuned network, the given one beside it, and the objective that knows both."""
    model, given = network(1), network(2)
    for layer in (model[2], given[2]):
        with torch.no_grad():
            layer.weight *= 6  # sure of its answers, so that the two are right, wrong and alike here and there
    batch = batch_of()
    clean = CleanSet(batch)
    space = InputSpace.of(TASK, clean)
    weights = FullWeights(model)
    before = {name: value.detach().clone() for name, value in given.named_parameters()}
    ball = Ball.of(space, clean, 0.8, "linf")
    return SharedExamples(model, weights, before, space, ball, run, ascent_steps=6), given, batch


def test_divergence_by_hand():
    """``p = (1/2, 1/2)``, ``q = (1, 0)``: ``m = (3/4, 1/4)``."""
    p, q = torch.tensor([[0.5, 0.5]], dtype=torch.float64), torch.tensor([[1.0, 1e-300]], dtype=torch.float64)
    wanted = 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)) + 0.5 * math.log(1 / 0.75)
    assert_close(divergence(p.log(), q.log()), torch.tensor([wanted], dtype=torch.float64))
    assert_close(divergence(q.log(), p.log()), torch.tensor([wanted], dtype=torch.float64))
    assert float(divergence(p.log(), p.log())) == pytest.approx(0, abs=1e-15)
    apart = torch.tensor([[1e-300, 1.0]], dtype=torch.float64)
    assert float(divergence(q.log(), apart.log())) == pytest.approx(math.log(2))


def test_chance_of_other_answers_is_exact_where_one_class_is_nearly_sure():
    """``log(1 - p)`` as it stands is minus infinity there, and has no gradient."""
    logits = torch.tensor([[40.0, 1.0, 0.0], [0.3, 0.2, -1.0]], dtype=torch.float64, requires_grad=True)
    found = other_answers(logits.log_softmax(1), torch.tensor([0, 1]))
    p = logits.softmax(1)
    assert_close(found[1], (1 - p[1, 1]).log())
    assert_close(found[0], (math.e + 1 + 0 * found[0]).log() - 40, rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(found[0], logits)
    assert_close(slope[0, 0], torch.tensor(-1.0, dtype=torch.float64))


def test_gain_is_that_of_a_loop_over_samples(scene):
    """Losses of models that are still right, divergence of pairs that do not yet err alike."""
    objective, given, batch = scene
    generator = torch.Generator().manual_seed(5)
    delta = objective.ball.draw(torch.zeros(len(batch), 4, dtype=torch.float64), generator)
    a, s = 0.7, 1.3
    objective = SharedExamples(
        *(objective.model, objective.weights, objective.given, objective.space, objective.ball, objective.run),
        ascent_steps=1, adversarial=a, shared=s,
    )  # fmt: skip
    wanted, cases = 0.0, set()
    for x, y, move in zip(batch.inputs, batch.targets, delta, strict=True):
        moved = (x + move).clamp(objective.space.low, objective.space.high)
        p, q = (net(moved[None]).detach().softmax(1)[0] for net in (objective.model, given))
        m = (p + q) / 2
        alike = int(p.argmax()) == int(q.argmax()) != int(y)
        cases.add((int(p.argmax()) == int(y), int(q.argmax()) == int(y), alike))
        if not alike:
            wanted -= s * 0.5 * float((p * (p / m).log()).sum() + (q * (q / m).log()).sum())
        for one in (p, q):
            if int(one.argmax()) == int(y):
                wanted -= a / 2 * math.log(float(one[y]))
    assert len(cases) == 5, "every way of being right, wrong and alike must occur, or the test says little"
    assert float(objective.gain(batch, delta).detach()) == pytest.approx(wanted / len(batch), rel=1e-12)


def test_loss_on_shared_examples_is_that_of_a_loop_and_moves_the_tuned_weights_alone(scene):
    objective, given, batch = scene
    delta = objective.search(batch)
    wanted, wrong = 0.0, 0
    for x, y, move in zip(batch.inputs, batch.targets, delta, strict=True):
        moved = (x + move).clamp(objective.space.low, objective.space.high)[None]
        k = int(given(moved).argmax())
        if k != int(y):
            wrong += 1
            wanted -= math.log(1 - float(objective.model(moved).detach().softmax(1)[0, k]))
    assert 0 < wrong < len(batch)
    loss = objective.unlearning(batch, delta)
    assert float(loss.detach()) == pytest.approx(wanted / len(batch), rel=1e-12)
    slopes = torch.autograd.grad(loss, list(objective.weights.parameters().values()))
    assert all(float(slope.abs().max()) > 0 for slope in slopes)
    place = int(slopes[0].abs().argmax())
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            objective.model[0].weight.view(-1)[place] += sign * 1e-6
            values.append(float(objective.unlearning(batch, delta)))
            objective.model[0].weight.view(-1)[place] -= sign * 1e-6
    assert float(slopes[0].view(-1)[place]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6)


def test_search_stays_in_the_ball_and_finds_more_shared_errors_than_chance(scene):
    objective, _, batch = scene
    delta = objective.search(batch)
    start = objective.ball.draw(torch.zeros_like(delta), torch.Generator().manual_seed(0))
    assert float(delta.abs().max()) <= objective.ball.radius * (1 + 1e-12)
    assert delta.requires_grad is False
    assert float(objective.gain(batch, delta).detach()) > float(objective.gain(batch, start).detach())
    assert alike(objective, batch, delta) > alike(objective, batch, start)


def alike(objective, batch, delta):
    """On how many samples both models give the same wrong answer."""
    inputs = objective.space.add(batch.inputs, delta)
    ours, theirs = objective.answers(inputs).argmax(1), objective.answers_before(inputs).argmax(1)
    return int(((ours == theirs) & (ours != batch.targets)).sum())


def test_purified_model_no_longer_errs_as_the_given_one_does(trained, run):
    model, batch = trained
    given = copy.deepcopy(model)
    SAU(steps=100, batch_size=30, radius=0.9, holdout=0.0).purify(model, batch, TASK)
    assert (model(batch.inputs).argmax(1) == batch.targets).all()
    clean = CleanSet(batch)
    space = InputSpace.of(TASK, clean)
    weights = FullWeights(given)
    kept = {name: value.detach().clone() for name, value in given.named_parameters()}
    search = SharedExamples(given, weights, kept, space, Ball.of(space, clean, 0.9, "linf"), run, ascent_steps=8)
    inputs = space.add(batch.inputs, search.search(batch))
    wrong = given(inputs).argmax(1)
    fooled = wrong != batch.targets
    assert int(fooled.sum()) > 10, "the given model must be fooled, or there is nothing to unlearn"
    assert float((model(inputs).argmax(1) == wrong)[fooled].double().mean()) < 0.5


class Rows(ClassificationTask):
    """Targets are rows of zeros and ones, each class a yes or no of its own."""

    name = "rows"

    def log_likelihood(self, outputs, targets):
        return -nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").sum(1)

    def inspect(self, clean, outputs):
        return []

    def meters(self):
        return {"exact": Exact()}

    def correct(self, outputs, targets):
        return ((outputs > 0) == (targets > 0.5)).all(1)


class Exact:
    def __init__(self):
        self.right = self.count = 0

    def update(self, outputs, targets):
        self.right, self.count = self.right + int(Rows().correct(outputs, targets).sum()), self.count + len(outputs)

    def compute(self):
        return self.right / max(self.count, 1)


def test_task_of_several_classes_a_sample_is_refused_by_name():
    batch = batch_of()
    rows = Batch(batch.inputs, nn.functional.one_hot(batch.targets, 3).double())
    with pytest.raises(UnsupportedTask, match=r"'sau' compares the classes.*'rows'.*one class a sample"):
        SAU(steps=1).purify(network(1), rows, Rows())


@pytest.mark.parametrize("wrong", [{"ascent_steps": 0}, {"adversarial": -1.0}, {"unlearn": math.inf}, {"shared": -1.0}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(BadOption):
        SAU(**wrong)
