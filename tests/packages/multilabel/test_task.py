"""The task against slow loops and scikit-learn."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch import nn
from torch.testing import assert_close

from unbackdoor.defender.loss import distillation_targets
from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch
from unbackdoor_multilabel import MultilabelTask
from unbackdoor_multilabel.losses import asymmetric_scores
from unbackdoor_multilabel.meters import MeanAveragePrecision, MicroF1, PerClassF1, average_precision
from unbackdoor_multilabel.rows import hard_rows, rarest_class

TASK = MultilabelTask()


def logits_for(rows, generator, sureness=1.0):
    noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    return noise + sureness * (2.0 * rows - 1)


def bernoulli(logit, share):
    likely = 1 / (1 + math.exp(-logit))
    return share * math.log(likely) + (1 - share) * math.log(1 - likely)


def test_log_likelihood_is_the_sum_of_bernoulli_terms(rows, generator):
    logits = logits_for(rows, generator)
    pairs = [zip(*pair, strict=True) for pair in zip(logits, rows, strict=True)]
    slow = [sum(bernoulli(float(z), int(t)) for z, t in pair) for pair in pairs]
    expected = torch.tensor(slow, dtype=torch.float64)
    for labels in (1.0, 3.5):
        given = MultilabelTask(labels=labels).log_likelihood(logits, rows)
        assert_close(given, expected / labels, rtol=0, atol=1e-10)


def test_log_likelihood_of_a_triple_is_that_of_the_mixed_shares(rows, generator):
    logits, share = logits_for(rows, generator), torch.rand(len(rows), generator=generator, dtype=torch.float64)
    other = rows.flip(0)
    mixed = TASK.log_likelihood(logits, (rows, other, share))
    both = share * TASK.log_likelihood(logits, rows) + (1 - share) * TASK.log_likelihood(logits, other)
    assert_close(mixed, both, rtol=0, atol=1e-10)
    soft = share[:, None] * rows + (1 - share[:, None]) * other
    assert_close(mixed, TASK.log_likelihood(logits, soft), rtol=0, atol=1e-10)


def test_log_likelihood_of_very_sure_logits_is_finite_in_half_precision():
    logits = torch.tensor([[60.0, -60.0]], dtype=torch.bfloat16)
    assert_close(TASK.log_likelihood(logits, torch.tensor([[0, 1]])), torch.tensor([-120.0 / TASK.labels]))


def test_imitation_keeps_labels_of_kept_classes_and_asks_for_sigmoids_elsewhere(rows, generator):
    reference, kept = logits_for(rows, generator), torch.tensor([True, False, False, True, False, False])
    soft = TASK.imitate(reference, rows, kept)
    assert_close(soft[:, kept], rows[:, kept].double())
    assert_close(soft[:, ~kept], reference.sigmoid()[:, ~kept])


def test_labels_have_a_say_in_what_mixing_leaves_open(rows, generator):
    reference, other, nothing = logits_for(rows, generator), rows.roll(1, 0), torch.zeros(6, dtype=torch.bool)
    mixed = (rows, other, torch.full((len(rows),), 0.75, dtype=torch.float64))
    for trust in (0.0, 0.25, 1.0):
        soft = MultilabelTask(trust=trust).imitate(reference, mixed, nothing)
        drawn = trust * reference.sigmoid() + (1 - trust) * (0.75 * rows + 0.25 * other)
        assert_close(soft, torch.where(rows == other, reference.sigmoid(), drawn))


def test_imitation_asks_each_sample_for_its_own_classes(rows, generator):
    reference = logits_for(rows, generator)
    kept = torch.rand(rows.shape, generator=generator) < 0.5
    soft = MultilabelTask(trust=1.0).imitate(reference, rows, kept)
    assert_close(soft[kept], rows[kept].double())
    assert_close(soft[~kept], reference.sigmoid()[~kept])


def test_labels_settle_what_both_sides_of_a_mixture_agree_on():
    a, b = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]]), torch.tensor([[1, 0, 1, 0], [1, 0, 1, 0]])
    assert bool(TASK.settled(a).all()), "labels that are not mixed leave nothing open"
    mixed = TASK.settled((a, b, torch.tensor([0.3, 1.0])))
    assert mixed.tolist() == [[True, False, False, True], [True, True, True, True]]


def test_a_teacher_is_asked_only_what_labels_leave_open(generator):
    """Of a teacher that always answers class 0, nothing is learned where neither image of a mixture shows it."""

    class Sure(nn.Module):
        def forward(self, images):
            return torch.tensor([9.0, 0.0, -9.0]).expand(len(images), -1)

    rows = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 1]])
    others = rows.roll(1, 0)
    batch = Batch(torch.rand(4, 1, 8, 8, generator=generator), (rows, others, torch.full((4,), 0.5)))
    answers = distillation_targets(Sure(), TASK, batch).targets
    said = torch.tensor([9.0, 0.0, -9.0]).sigmoid().expand(4, -1)
    open_classes = TASK.trust * said + (1 - TASK.trust) * 0.5
    assert_close(answers, torch.where(rows == others, rows.float(), open_classes))


def test_strong_changes_keep_labels_and_form(rows, generator):
    levels = torch.randint(0, 256, (len(rows), 3, 16, 16), generator=generator, dtype=torch.uint8)
    batch = Batch(levels, rows)
    mixed = TASK.augment(batch, generator, mix=1.0)
    before = [part.clone() for part in mixed.targets]
    first, again = (TASK.strong_augment(mixed.inputs, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == levels.shape
    assert first.is_floating_point()
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    assert torch.equal(first, again)
    assert all(torch.equal(now, then) for now, then in zip(mixed.targets, before, strict=True))
    assert int((first != TASK.perturbable(mixed.inputs)).flatten(1).any(1).sum()) > len(rows) // 2
    with pytest.raises(BadOption, match="patch, noise, colour, geometry, blur"):
        TASK.strong_augment(levels, generator, without={"rain"})


def test_average_precision_is_scikit_learns(rows, generator):
    logits = logits_for(rows, generator).round(decimals=1)  # with ties
    assert len(torch.unique(logits[:, 0])) < len(logits)
    expected = [average_precision_score(rows[:, k].numpy(), logits[:, k].numpy()) for k in range(6)]
    assert_close(average_precision(logits, rows), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_mean_average_precision_leaves_out_classes_without_positives(rows, generator):
    logits = logits_for(rows, generator)
    rows[:, 2] = 0
    meter = MeanAveragePrecision()
    meter.update(logits[:15], rows[:15])
    meter.update(logits[15:], rows[15:])
    kept = [average_precision_score(rows[:, k].numpy(), logits[:, k].numpy()) for k in (0, 1, 3, 4, 5)]
    assert meter.compute() == pytest.approx(sum(kept) / 5)
    assert torch.isnan(meter.by_class()).tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize(("meter", "average"), [(PerClassF1, "macro"), (MicroF1, "micro")])
def test_f1_is_scikit_learns(meter, average, rows, generator):
    logits = logits_for(rows, generator, 0.3)
    ours = meter()
    ours.update(logits[:7], rows[:7])
    ours.update(logits[7:], rows[7:])
    assert ours.compute() == pytest.approx(f1_score(rows.numpy(), (logits > 0).numpy(), average=average))


def test_meters_agree_with_torchmetrics(rows, generator):
    metrics = pytest.importorskip("torchmetrics.functional.classification", reason="torchmetrics is not installed")
    likely = logits_for(rows, generator).sigmoid().float()
    theirs = metrics.multilabel_average_precision(likely, rows, num_labels=6, average=None)
    assert_close(average_precision(likely, rows).float(), theirs)
    for ours, average in ((PerClassF1(), "macro"), (MicroF1(), "micro")):
        ours.update(likely.logit(), rows)
        assert ours.compute() == pytest.approx(float(metrics.multilabel_f1_score(likely, rows, 6, average=average)))


def test_meters_of_nothing_say_so():
    assert all(math.isnan(meter.compute()) for meter in TASK.meters().values())


def test_correct_is_exact_or_f1():
    logits = torch.tensor([[5.0, 5, -5], [5, -5, -5], [-5, -5, -5], [5, 5, 5]])
    rows = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]])
    assert MultilabelTask(credit="exact").correct(logits, rows).tolist() == [True, False, True, False]
    graded = TASK.correct(logits, rows)
    expected = [Fraction(1), Fraction(2, 3), Fraction(1), Fraction(1, 2)]
    assert graded.tolist() == pytest.approx([float(one) for one in expected])
    with pytest.raises(BadOption, match="credit"):
        MultilabelTask(credit="some")


def test_samples_per_class_and_strata():
    rows = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]])
    assert TASK.samples_per_class(rows) == 2.5  # five labels in two classes
    assert TASK.strata(rows).tolist() == [0, 1, 1, 3]
    assert rarest_class((rows, rows.flip(0), torch.tensor([0.9, 0.9, 0.9, 0.9]))).tolist() == [0, 1, 1, 3]


def test_hard_rows_take_the_larger_share():
    a, b = torch.tensor([[1, 0]]), torch.tensor([[0, 1]])
    assert hard_rows((a, b, torch.tensor([0.7]))).tolist() == [[1, 0]]
    assert hard_rows(torch.tensor([[0.2, 0.8]])).tolist() == [[0, 1]]


def slow_asymmetric(logit, there, positive, negative, margin):
    likely = 1 / (1 + math.exp(-logit))
    shifted = max(likely - margin, 0.0)
    if there:
        return (1 - likely) ** positive * math.log(likely)
    return shifted**negative * math.log(1 - shifted)


@pytest.mark.parametrize("values", [(0.0, 4.0, 0.05), (1.0, 2.0, 0.0), (0.0, 0.0, 0.2)])
def test_asymmetric_loss_is_its_formula(values, rows, generator):
    logits = logits_for(rows, generator)
    words = dict(zip(("positive", "negative", "margin"), values, strict=True))
    pairs = [zip(*pair, strict=True) for pair in zip(logits, rows, strict=True)]
    slow = [sum(slow_asymmetric(float(z), int(t), *values) for z, t in pair) for pair in pairs]
    fast = asymmetric_scores(logits, rows.double(), **words)
    assert_close(fast, torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-10)


def test_asymmetric_loss_without_its_exponents_is_the_log_likelihood(rows, generator):
    logits = logits_for(rows, generator)
    plain = asymmetric_scores(logits, rows.double(), positive=0, negative=0, margin=0)
    assert_close(plain, MultilabelTask(labels=1.0).log_likelihood(logits, rows), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 1, 2, 0]), "another kind of task"),
        (torch.zeros(4, 2, dtype=torch.int64), r"\(n, 3\)"),
        (torch.rand(4, 3), "as integers"),
        (torch.tensor([[0, 2, 1]] * 4), "there \\(1\\) or not"),
        (torch.tensor([[0, 1, -1], [0, 0, 1], [1, 0, 0], [1, 1, 1]]), "-1"),
        (torch.tensor([[0, 1, 1]] * 4), "same labels"),
    ],
)
def test_inspect_refuses_labels_that_do_not_fit(targets, message):
    with pytest.raises(BadData, match=message):
        TASK.inspect(Batch(torch.rand(4, 1, 8, 8), targets), torch.rand(4, 3))


def test_inspect_tells_of_classes_without_an_image_and_of_odd_pixels():
    rows = torch.tensor([[1, 0, 0], [0, 1, 0]])
    (absent,) = TASK.inspect(Batch(torch.rand(2, 1, 8, 8), rows), torch.rand(2, 3))
    assert "no clean image shows 1 of 3 classes: 2" in absent
    notices = TASK.inspect(Batch(3 * torch.ones(2, 1, 8, 8), rows), torch.rand(2, 3))
    assert any("MultilabelTask(mean=" in text for text in notices)
    with pytest.raises(BadData, match="MLDecoder"):
        TASK.inspect(Batch(torch.rand(2, 1, 8, 8), rows), torch.rand(2, 3, 4, 4))


WRONG = [{"labels": 0.0}, {"labels": -1.0}, {"labels": math.inf}, {"trust": 1.1}, {"trust": -0.1}]


@pytest.mark.parametrize("options", WRONG)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(BadOption, match=next(iter(options))):
        MultilabelTask(**options)
