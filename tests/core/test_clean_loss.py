"""Labels and the given model's own answers as what is asked for on clean samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unbackdoor.data import CleanSet
from unbackdoor.defender.clean_loss import CleanLoss, Teacher
from unbackdoor.defender.reparam import NeuronMask
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch, Task
from unbackdoor.testing import ClassificationTask

EXACT = {"rtol": 0, "atol": 1e-12}
TASK = ClassificationTask()


@pytest.fixture
def model():
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(4, 3).double()
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return linear


@pytest.fixture
def batch():
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Batch(inputs, torch.tensor([0, 1, 2, 1, 0]))


def loss_of(model, batch, run, distil, task=TASK, **options):
    return CleanLoss.of(model, task, CleanSet(batch), run, distil=distil, mixup=1.0, weights_move=True, **options)


def on(loss, batch):
    """The loss on ``batch`` as it is: neither drawn nor augmented."""
    if loss.teacher is None:
        return loss.prepare(1, 5, 0)[1](batch)
    return loss.prepare(1, 5, 0)[1](loss.teacher.answer(loss.task, batch))


@pytest.mark.parametrize("distil", [0.0, 0.3, 1.0])
def test_clean_loss_is_the_mixture_of_two_cross_entropies(model, batch, run, distil):
    loss = loss_of(model, batch, run, distil)
    if loss.teacher is not None:
        loss.teacher.suspects[:] = False
    given = model(batch.inputs).softmax(1).detach()
    with torch.no_grad():
        model.weight.mul_(0.5)  # the teacher stays
    logs = model(batch.inputs).log_softmax(1)
    labels = -logs[torch.arange(5), batch.targets].mean()
    expected = (1 - distil) * labels - distil * (given * logs).sum(1).mean()
    found = on(loss, batch)
    assert_close(found, expected, **EXACT)
    slopes = torch.autograd.grad(found, list(model.parameters()))
    assert_close(slopes, torch.autograd.grad(expected, list(model.parameters())), **EXACT)


def test_clean_loss_of_a_suspect_asks_for_the_labels_share(model, batch, run):
    loss = loss_of(model, batch, run, 1.0)
    loss.teacher.suspects[:] = torch.tensor([True, False, False])
    second = torch.tensor([1, 2, 0, 1, 2])
    share = torch.tensor([0.75, 0.5, 0.25, 1.0, 0.1], dtype=torch.float64)
    given = model(batch.inputs).softmax(1).detach()
    wanted = torch.zeros(5, 3, dtype=torch.float64)
    for n, (a, b, s) in enumerate(zip(batch.targets.tolist(), second.tolist(), share.tolist(), strict=True)):
        wanted[n, a] += s
        wanted[n, b] += 1 - s
        rest = float(1 - wanted[n, 0])
        wanted[n, 1:] = rest * given[n, 1:] / given[n, 1:].sum()
    expected = -(wanted * model(batch.inputs).log_softmax(1)).sum(1).mean()
    assert_close(on(loss, Batch(batch.inputs, (batch.targets, second, share))), expected, **EXACT)


def test_teacher_suspects_the_class_that_mixtures_evoke(run):
    """Ten classes on ten axes; what lies between two of them is taken for class 3."""

    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(20.0))

        def forward(self, x):
            logits = self.scale * x
            between = (1 - x.amax(1)).clamp(min=0)
            return torch.cat([logits[:, :3], (logits[:, 3] + 60 * between)[:, None], logits[:, 4:]], 1)

    targets = torch.arange(10).repeat(20)
    clean = CleanSet(Batch(torch.eye(10)[targets], targets))
    suspects = Teacher.of(Leaky(), TASK, clean, run, mixup=1.0).suspects
    assert suspects.tolist() == [k == 3 for k in range(10)]
    assert any("class 3" in text for text in run.notices)


def test_teacher_is_apart_where_the_weights_move(model, batch, run):
    model.train()
    teacher = loss_of(model, batch, run, 1.0).teacher.model
    assert not teacher.training
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        model.weight.zero_()
    assert bool(teacher.weight.any())


def test_teacher_of_a_handle_shares_the_weights_and_keeps_its_answers(run):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    clean = CleanSet(Batch(inputs, torch.arange(8) % 3))
    given = model(inputs).detach()
    teacher = CleanLoss.of(model, TASK, clean, run, distil=1.0, mixup=1.0).teacher.model
    with NeuronMask(model, lambda: model(inputs)) as mask:
        mask.attenuate_(0.5)
        assert not torch.equal(model(inputs), given)
        assert torch.equal(teacher(inputs), given)
        assert teacher[0].weight is mask.sites["0.weight"].weight
        assert teacher[1].running_mean is not model[1].running_mean


def test_clean_loss_of_labels_needs_no_copy(model, batch, run):
    assert loss_of(model, batch, run, 0.0).teacher is None


def test_clean_loss_falls_back_to_labels_where_a_task_cannot_imitate(model, batch, run):
    class Plain(ClassificationTask):
        name = "plain"
        evoked = Task.evoked
        imitate = Task.imitate

    loss = loss_of(model, batch, run, 1.0, Plain())
    assert_close(on(loss, batch), TASK.loss(model(batch.inputs), batch.targets), **EXACT)
    assert any("'plain'" in text and "labels alone" in text for text in run.notices)


def test_clean_loss_falls_back_to_labels_where_a_model_cannot_be_copied(batch, run):
    class Single(nn.Linear):
        def __deepcopy__(self, memo):
            raise KeyError("one only")

    loss = loss_of(Single(4, 3).double(), batch, run, 1.0)
    assert loss.teacher is None
    assert any("one only" in text for text in run.notices)


def test_clean_loss_of_sparse_samples_is_that_of_their_labels_unmixed(model, batch, run):
    run.sparse = True
    loss = loss_of(model, batch, run, 1.0)
    assert loss.teacher is None
    assert "labels alone" in run.notices[0]
    samples, of_labels = loss.prepare(7, 4, 1.0)
    assert samples is loss.clean
    assert_close(of_labels(batch), TASK.loss(model(batch.inputs), batch.targets), **EXACT)


@pytest.mark.parametrize("distil", [-0.1, 1.1])
def test_clean_loss_share_outside_its_range_is_refused(model, batch, run, distil):
    with pytest.raises(BadOption, match="must lie in"):
        loss_of(model, batch, run, distil)


@pytest.mark.parametrize(("reuse", "made"), [(1, 7), (3, 3), (8, 1)])
def test_clean_loss_asks_the_teacher_once_for_every_reuse_steps(model, batch, run, reuse, made):
    loss = loss_of(model, batch, run, 1.0, reuse=reuse)
    samples, of_answers = loss.prepare(7, 4, 1.0)
    assert len(samples) == 4 * made
    answers, labels = samples.samples.targets
    mixed = Batch(samples.samples.inputs, labels)
    assert_close(answers, TASK.imitate(loss.teacher.model(mixed.inputs), labels, loss.teacher.suspects), **EXACT)
    drawn = next(samples.batches(4, torch.Generator().manual_seed(0)))
    assert_close(of_answers(drawn), TASK.loss(model(drawn.inputs), drawn.targets[0]), **EXACT)


def test_clean_loss_of_labels_draws_the_clean_samples(model, batch, run):
    loss = loss_of(model, batch, run, 0.0, reuse=8)
    assert loss.prepare(7, 4, 1.0)[0] is loss.clean


def test_clean_loss_used_less_than_once_is_refused(model, batch, run):
    with pytest.raises(BadOption, match="at least once"):
        loss_of(model, batch, run, 1.0, reuse=0)
