"""AWM: the shared perturbation, its norm, one step of the masks, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

import unbackdoor
from unbackdoor.data import CleanSet
from unbackdoor.defender.input_space import InputSpace
from unbackdoor.defender.methods.awm import AWM
from unbackdoor.defender.methods.awm.awm import within_norm
from unbackdoor.defender.purifier import Run
from unbackdoor.errors import BadOption, UnsupportedTask
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()


def samples(count):
    generator = torch.Generator().manual_seed(2)
    return Batch(torch.rand(count, 4, generator=generator, dtype=torch.float64), torch.arange(count) % 3)


def test_norm_is_a_ball_and_not_a_sphere():
    assert_close(within_norm(torch.tensor([3.0, -1.0]), 2.0), torch.tensor([1.5, -0.5]))
    assert_close(within_norm(torch.tensor([0.3, -0.1]), 2.0), torch.tensor([0.3, -0.1]))
    assert_close(within_norm(torch.zeros(2), 2.0), torch.zeros(2))


@pytest.mark.parametrize("count", [1, 5])
def test_search_climbs_by_plain_steps_projected_each_time_even_for_one_sample(run, count):
    model, batch = network(), samples(count)
    clean = CleanSet(batch)
    space = InputSpace.of(TASK, clean)
    purifier = AWM(search_steps=4, search_lr=2.0, batch_size=count, trigger_norm=0.2)
    delta = purifier._search(model, space, clean, TASK, run)
    low, high = float(batch.inputs.min()), float(batch.inputs.max())
    norm = 0.2 * (high - low) * 4
    wanted = torch.zeros(1, 4, dtype=torch.float64)
    for _ in range(4):
        leaf = wanted.clone().requires_grad_()
        loss = functional.cross_entropy(model((batch.inputs + leaf).clamp(low, high)), batch.targets)
        wanted = wanted + 2.0 * torch.autograd.grad(loss, leaf)[0]
        wanted = wanted * min(1.0, norm / float(wanted.abs().sum()))
    assert_close(delta, wanted)
    assert 0 < float(delta.abs().sum()) <= norm * (1 + 1e-9)


def test_one_step_of_the_masks_is_that_of_the_formula():
    """Adam's first step is ``lr * sign(gradient)``: ``alpha L(x) + (1 - alpha) L(x + delta) + gamma sum |m|``."""
    model, batch = network(), samples(6)
    options = {"steps": 1, "rounds": 1, "batch_size": 6, "lr": 0.01, "sparsity": 0.001, "alpha": 0.6, "holdout": 0.0}
    purified, _ = unbackdoor.purify(model, batch, task=TASK, method="awm", seed=4, max_clean_drop=100.0, **options)

    run = Run(torch.Generator().manual_seed(4), torch.device("cpu"), model)
    clean = CleanSet(batch)
    space = InputSpace.of(TASK, clean)
    delta = AWM(**options)._search(model, space, clean, TASK, run)
    m = torch.ones(6, 4, dtype=torch.float64, requires_grad=True)

    def logits(x):
        return (x @ (m * model[0].weight).T + model[0].bias).tanh() @ model[2].weight.T + model[2].bias

    loss = 0.6 * functional.cross_entropy(logits(batch.inputs), batch.targets)
    loss = loss + 0.4 * functional.cross_entropy(logits(space.add(batch.inputs, delta)), batch.targets)
    loss = loss + 0.001 * m.abs().sum()
    (slope,) = torch.autograd.grad(loss, [m])
    assert (slope > 0).any()
    assert (slope < 0).any()
    wanted = (1 - 0.01 * slope / (slope.abs() + 1e-8)).clamp(0, 1)
    assert_close((purified[0].weight / model[0].weight).detach(), wanted)
    assert torch.equal(purified[2].weight, model[2].weight)  # the last layer has no masks


def test_the_penalty_shrinks_weights_and_never_makes_one_grow(clean):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    options = {"steps": 40, "rounds": 2, "lr": 0.05, "max_clean_drop": 100.0}
    mild, _ = unbackdoor.purify(model, clean, task=TASK, method="awm", sparsity=0.0, **options)
    hard, _ = unbackdoor.purify(model, clean, task=TASK, method="awm", sparsity=1.0, **options)
    assert (mild[0].weight.abs() <= model[0].weight.abs()).all()
    assert hard[0].weight.abs().sum() < 0.1 * mild[0].weight.abs().sum()


def test_inputs_without_floats_are_refused_by_name():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3))
    batch = Batch(torch.randint(0, 5, (6, 2), generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3)
    with pytest.raises(UnsupportedTask, match="'awm' searches in input space"):
        unbackdoor.purify(model, batch, task=TASK, method="awm")


@pytest.mark.parametrize(
    "options", [{"alpha": 2.0}, {"sparsity": -1.0}, {"trigger_norm": 0.0}, {"rounds": 0}, {"decay": 0.0}]
)
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(BadOption):
        AWM(**options)
