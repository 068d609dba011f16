"""Which neurons are pruned by a score, and that they are as many as the tolerance allows."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unbackdoor.data import CleanSet
from unbackdoor.defender.pruning import Course, neuron_mask, prune_below, prune_within
from unbackdoor.defender.reparam import NeuronMask
from unbackdoor.defender.tolerance import AccuracyTolerance
from unbackdoor.errors import BeyondTolerance
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


def network() -> nn.Sequential:
    """Hidden neuron 0 tells the first class, all others tell nothing; the second class is the answer without it."""
    model = nn.Sequential(nn.Linear(2, 6, bias=False), nn.Linear(6, 2)).double()
    with torch.no_grad():
        model[0].weight.fill_(0.01)
        model[0].weight[0] = torch.tensor([1.0, 0.0])
        model[1].weight.fill_(0.1)
        model[1].weight[0, 0] = 5.0
        model[1].bias.copy_(torch.tensor([0.0, 1.0]))
    return model.eval()


def setting(run, scores):
    labels = torch.arange(40) % 2
    clean = CleanSet(Batch(nn.functional.one_hot(labels, 2).double(), labels))
    run.holdout = clean
    model = network()
    mask = NeuronMask(model, partial(model, clean.samples.inputs[:2]), head=False)
    return model, mask, {"0.weight": torch.tensor(scores)}, AccuracyTolerance.of(model, TASK, clean, run, 3.0)


def test_the_largest_threshold_within_the_tolerance_prunes(run):
    model, mask, scores, tolerance = setting(run, [0.25, 0.9, 0.1, 0.3, 0.2, 1.0])
    given = model[0].weight.detach().clone()
    with mask:
        assert prune_within(mask, scores, tolerance, model, below=1.0) == 2
        mask.fold_()
    kept = torch.tensor([True, True, False, True, False, True])  # the next one, neuron 0, is needed
    assert_close(model[0].weight.detach(), given * kept.unsqueeze(1), rtol=0, atol=0)
    assert run.notices[-1] == "pruned 2 of 6 neurons, those of scores up to 0.2."


def test_a_needed_neuron_of_the_lowest_score_stays_and_the_next_are_tried_one_by_one(run):
    model, mask, scores, tolerance = setting(run, [0.1, 0.9, 0.25, 0.3, 0.2, 1.0])
    given = model[0].weight.detach().clone()
    with mask:
        assert prune_within(mask, scores, tolerance, model, below=1.0) == 4
        mask.fold_()
    kept = torch.tensor([True, False, False, False, False, True])  # 0 is needed, 5 is not suspicious
    assert_close(model[0].weight.detach(), given * kept.unsqueeze(1), rtol=0, atol=0)
    assert run.notices[-1] == "pruned 4 of 6 neurons; 1 of the 5 with the lowest scores had to stay."
    assert (run.log[-1]["pruned"], run.log[-1]["tried"], run.log[-1]["drop"]) == (4, 5, 0.0)


def test_where_every_neuron_costs_too_much_nothing_is_given(run):
    model, mask, scores, tolerance = setting(run, [0.1, 0.9, 0.2, 0.3, 0.3, 0.3])
    with mask, pytest.raises(BeyondTolerance, match="even the neuron that cost least, of 1 suspicious ones"):
        prune_within(mask, scores, tolerance, model, patience=1)


def test_pruning_ends_after_so_many_neurons_that_had_to_stay(run):
    model, mask, scores, tolerance = setting(run, [0.1, 0.9, 0.2, 0.3, 0.3, 0.3])
    given, run.allow_drop = model[0].weight.detach().clone(), True
    with mask:
        assert prune_within(mask, scores, tolerance, model, patience=1) == 0
        mask.fold_()
    assert torch.equal(model[0].weight, given)
    assert run.notices[-1] == "nothing was pruned: none of 1 suspicious neurons was within the tolerance."


def test_what_was_pruned_before_counts_against_the_tolerance(run):
    """The first class needs 5 of 4 + 2 + 2: neuron 0 cannot go, and of neurons 1 and 2 either can, but not both."""
    model, mask, scores, tolerance = setting(run, [0.1, 0.2, 0.3, 1.0, 1.0, 1.0])
    with torch.no_grad():
        model[0].weight[1:3] = model[0].weight[0]
        model[1].weight[0, :3] = torch.tensor([4.0, 2.0, 2.0])
        model[1].bias[1] = 5.0
    with mask:
        assert prune_within(mask, scores, tolerance, model, below=1.0) == 1
        mask.fold_()
    assert (model[0].weight.abs().sum(1) == 0).tolist() == [False, True, False, False, False, False]


def test_a_fixed_threshold_prunes_whatever_it_costs(run):
    model, mask, scores, tolerance = setting(run, [0.1, 0.9, 0.2, 0.3, 0.3, 0.3])
    with mask:
        prune_below(mask, scores, 0.2, tolerance)
        mask.fold_()
    assert (model[0].weight.abs().sum(1) == 0).tolist() == [True, False, True, False, False, False]


def test_of_masks_that_end_alike_the_one_that_came_down_first_counts_as_lower(run):
    _, mask, _, _ = setting(run, [0.0] * 6)
    course = Course(mask)
    value = mask.parameters()["0.weight"]
    for wanted in ([1.0, 0.5, -0.5, 1.0, 2.0, 0.4], [0.7, 0.0, 0.0, 0.0, 3.0, 0.4]):
        value.data.copy_(torch.tensor(wanted))
        course()
    scores = course.scores()["0.weight"]
    assert_close(value.detach(), torch.tensor([0.7, 0.0, 0.0, 0.0, 1.0, 0.4], dtype=torch.float64))  # projected
    assert scores.argsort().tolist() == [2, 1, 3, 5, 0, 4]
    assert_close(scores, value.detach(), atol=2e-6, rtol=0)


@pytest.mark.parametrize(("norm", "site"), [(True, "norm"), (False, "weight")])
def test_masks_sit_on_batchnorm_where_there_is_any(norm, site):
    layers = [nn.Linear(2, 3), nn.BatchNorm1d(3)] if norm else [nn.Linear(2, 3)]
    model = nn.Sequential(*layers, nn.Linear(3, 2)).eval()
    mask = neuron_mask(model, lambda: model(torch.rand(2, 2)), "auto", [])
    assert mask.site == site
    assert list(mask.parameters()) == ["1.weight" if norm else "0.weight"]
