"""Labels and the given model's own answers as what is asked for on clean samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unbackdoor.clean_loss import CleanLoss
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 3).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    return model, Batch(inputs, torch.tensor([0, 1, 2, 1, 0]))


@pytest.mark.parametrize("distil", [0.0, 0.3, 1.0])
def test_clean_loss_is_the_mixture_of_cross_entropy_and_divergence(problem, run, distil):
    model, batch = problem
    loss = CleanLoss.of(model, ClassificationTask(), run, distil=distil)
    given = model(batch.inputs).softmax(1).detach()
    with torch.no_grad():
        model.weight.mul_(0.5)
    logs = model(batch.inputs).log_softmax(1)
    labels = -logs[torch.arange(5), batch.targets].mean()
    divergence = (given * (given.log() - logs)).sum(1).mean()
    expected = (1 - distil) * labels + distil * divergence
    found = loss(batch)
    assert_close(found, expected, **EXACT)
    slopes = torch.autograd.grad(found, list(model.parameters()))
    assert_close(slopes, torch.autograd.grad(expected, list(model.parameters())), **EXACT)


def test_clean_loss_teacher_is_frozen_and_apart(problem, run):
    model, batch = problem
    model.train()
    loss = CleanLoss.of(model, ClassificationTask(), run, distil=1.0)
    assert not loss.teacher.training
    assert not any(p.requires_grad for p in loss.teacher.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert float(loss(batch).detach()) == pytest.approx(0.0, abs=1e-12)


def test_clean_loss_of_labels_needs_no_copy(problem, run):
    model, _ = problem
    assert CleanLoss.of(model, ClassificationTask(), run, distil=0.0).teacher is None


def test_clean_loss_falls_back_to_labels_where_a_task_has_no_divergence(problem, run):
    class Plain(ClassificationTask):
        name = "plain"
        divergence = ClassificationTask.__mro__[1].divergence

    model, batch = problem
    loss = CleanLoss.of(model, Plain(), run, distil=1.0)
    assert_close(loss(batch), Plain().loss(model(batch.inputs), batch.targets), **EXACT)
    assert any("'plain'" in text and "labels alone" in text for text in run.notices)


def test_clean_loss_falls_back_to_labels_where_a_model_cannot_be_copied(problem, run):
    class Single(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("one only")

    _, batch = problem
    model = Single(4, 3).double()
    loss = CleanLoss.of(model, ClassificationTask(), run, distil=1.0)
    assert loss.teacher is None
    assert any("RuntimeError" in text for text in run.notices)


@pytest.mark.parametrize("distil", [-0.1, 1.1])
def test_clean_loss_share_outside_its_range_is_refused(problem, run, distil):
    with pytest.raises(BadOption, match="must lie in"):
        CleanLoss.of(problem[0], ClassificationTask(), run, distil=distil)
