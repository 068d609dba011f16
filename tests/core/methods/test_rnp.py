"""RNP: when unlearning stops, that it is clipped, that weights come back, and what is pruned."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.data import CleanSet
from unbackdoor.defender.methods.rnp import RNP
from unbackdoor.defender.methods.rnp.rnp import forgotten
from unbackdoor.defender.reparam import FullWeights, NeuronMask
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


@pytest.mark.parametrize(
    ("given", "chance", "stop"),
    [(1.0, 0.1, 0.19), (1.0, 0.5, 0.55), (0.9, 1 / 3, 0.39), (0.2, 0.5, 0.2), (0.8, 0, 0.08)],
)
def test_unlearning_stops_a_little_above_chance_for_any_number_of_classes(given, chance, stop):
    assert forgotten(given, chance) == pytest.approx(stop)


def test_unlearning_climbs_the_clean_loss_until_clean_samples_are_forgotten(trained, run):
    model, batch = trained
    losses = []

    def loss():
        return float(nn.functional.cross_entropy(model(batch.inputs), batch.targets).detach())

    losses.append(loss())
    with FullWeights(model) as whole:
        RNP(unlearn_lr=0.1, clip=5.0)._unlearn(model, whole, CleanSet(batch), TASK, run)
        losses.append(loss())
        accuracy = float((model(batch.inputs).argmax(1) == batch.targets).double().mean())
    assert losses[1] > losses[0] + 1
    assert accuracy <= forgotten(1.0, 1 / 3)
    assert loss() == losses[0]  # FullWeights brought the given weights back
    assert not run.notices
    assert run.log[-1]["step"] < 200  # it stopped before unlearn_steps


def test_gradients_are_clipped_before_they_are_used(trained, run):
    """The public code clips before ``backward``, so that nothing is clipped."""
    model, batch = trained
    given = {n: p.detach().clone() for n, p in model.named_parameters()}
    options = {"unlearn_steps": 5, "unlearn_lr": 1.0, "unlearn_decay": 0.0, "momentum": 0.0, "clip": 1e-3}
    with FullWeights(model) as whole:
        RNP(batch_size=60, **options)._unlearn(model, whole, CleanSet(batch), TASK, run)
        moved = torch.cat([(p.detach() - given[n]).flatten() for n, p in model.named_parameters()]).norm()
    assert 0 < float(moved) <= 5e-3 * (1 + 1e-6)
    assert "unlearning ended after 5 steps" in run.notices[0]


@pytest.mark.parametrize("site", ["weight", "norm"])
def test_the_given_model_is_pruned_and_nothing_else_of_it_changes(trained, site):
    model, batch = trained
    purified, report = unbackdoor.purify(
        model, batch, task=TASK, method="rnp", site=site, lr=0.002, unlearn_lr=0.1, clip=5.0
    )
    where = 0 if site == "weight" else 1
    given, now = model[where].weight, purified[where].weight
    pruned = (now == 0).reshape(len(now), -1).all(1)
    assert 0 < int(pruned.sum()) < len(pruned), report.notices
    assert torch.equal(now[~pruned], given[~pruned])
    changed = {n for n, v in purified.state_dict().items() if not torch.equal(v, model.state_dict()[n])}
    assert changed == {f"{where}.weight"}
    assert report.after["accuracy"] >= report.before["accuracy"] - 25


def test_recovery_tunes_masks_of_the_unlearned_weights(trained, run):
    """One plain SGD step: ``m = 1 - lr * d L / d m`` at the weights that unlearning left."""
    model, batch = trained
    purifier = RNP(steps=1, batch_size=60, lr=0.01, momentum=0.0)
    with torch.no_grad():
        other = {n: p * 0.9 for n, p in model.named_parameters()}
    copied = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)).double().eval()
    copied.load_state_dict(model.state_dict() | other)
    m = torch.ones(32, dtype=torch.float64, requires_grad=True)
    first, norm, head = copied[0], copied[1], copied[3]
    z = batch.inputs @ (m.unsqueeze(1) * first.weight).T + first.bias
    z = (z - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    loss = nn.functional.cross_entropy(z.relu() @ head.weight.T + head.bias, batch.targets)
    (slope,) = torch.autograd.grad(loss, [m])
    mask = NeuronMask(copied, partial(copied, batch.inputs[:2]), head=False)
    scores = purifier._recover(copied, mask, CleanSet(batch), TASK, run)
    assert_close(
        scores["0.weight"], (1 - 0.01 * slope).clamp(0, 1), rtol=0, atol=2e-6
    )  # ties are broken by a millionth
