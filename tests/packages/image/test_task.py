"""`ImageTask`: likelihood, augmentation, MixUp and what it says of a model's outputs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import Tensor, nn
from torch.testing import assert_close

from unbackdoor.classes import Accuracy
from unbackdoor.errors import BadData, BadOption
from unbackdoor.mixing import beta
from unbackdoor.task import Batch
from unbackdoor_image import ImageTask
from unbackdoor_image.augment import shift_and_flip


def _slow_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    rows = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        top = max(row)
        rows.append(row[target] - top - math.log(sum(math.exp(value - top) for value in row)))
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_log_likelihood_equals_the_loop(logits: Tensor, samples: Batch) -> None:
    found = ImageTask().log_likelihood(logits, samples.targets)
    assert found.shape == (12,)
    assert_close(found, _slow_likelihood(logits, samples.targets), rtol=0, atol=1e-12)


def test_log_likelihood_is_linear_in_soft_targets(logits: Tensor) -> None:
    task = ImageTask()
    first, second = torch.rand(2, 12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mixed = task.log_likelihood(logits, 0.3 * first + 0.7 * second)
    assert_close(mixed, 0.3 * task.log_likelihood(logits, first) + 0.7 * task.log_likelihood(logits, second))


def test_log_likelihood_agrees_for_indices_one_hot_and_triples(logits: Tensor, samples: Batch) -> None:
    task, other = ImageTask(), (samples.targets + 1) % 4
    share = torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    one_hot = [nn.functional.one_hot(labels, 4).double() for labels in (samples.targets, other)]
    assert_close(task.log_likelihood(logits, one_hot[0]), task.log_likelihood(logits, samples.targets))
    soft = share[:, None] * one_hot[0] + (1 - share[:, None]) * one_hot[1]
    assert_close(task.log_likelihood(logits, (samples.targets, other, share)), task.log_likelihood(logits, soft))


def test_log_likelihood_of_half_precision_is_float32(samples: Batch) -> None:
    found = ImageTask().log_likelihood(torch.randn(12, 4).bfloat16(), samples.targets)
    assert found.dtype is torch.float32


def test_mixup_loss_equals_equation_4(samples: Batch) -> None:
    task = ImageTask(crop=0)
    mixed = task.augment(samples, torch.Generator().manual_seed(5), mix=0.7)
    first, second, share = mixed.targets
    partner = torch.empty(12, dtype=torch.long)
    for place in range(12):  # the partner is found again by its pixels
        rest = (mixed.inputs[place] - share[place] * samples.inputs[place]) / (1 - share[place])
        partner[place] = (samples.inputs - rest).abs().amax(dim=(1, 2, 3)).argmin()
    assert_close(second, samples.targets[partner])
    assert_close(first, samples.targets)
    by_hand = share.view(-1, 1, 1, 1) * samples.inputs + (1 - share.view(-1, 1, 1, 1)) * samples.inputs[partner]
    assert_close(mixed.inputs, by_hand)
    logits = torch.randn(12, 4)
    cross = nn.functional.cross_entropy
    losses = share * cross(logits, first, reduction="none") + (1 - share) * cross(logits, second, reduction="none")
    assert_close(task.loss(logits, mixed.targets), losses.mean())


def test_mixup_draws_one_lambda_or_one_for_each_sample(samples: Batch, generator: torch.Generator) -> None:
    assert len(ImageTask(mixup_per_sample=False).augment(samples, generator).targets[2].unique()) == 1
    assert len(ImageTask(mixup_per_sample=True).augment(samples, generator).targets[2].unique()) == 12


@pytest.mark.parametrize("parameter", [0.4, 1.0, 3.0])
def test_beta_has_the_right_mean_and_variance(parameter: float, generator: torch.Generator) -> None:
    draws = beta(parameter, 20_000, generator)
    assert_close(draws.mean(), torch.tensor(0.5, dtype=torch.float64), atol=0.01, rtol=0)
    assert_close(draws.var(), torch.tensor(1 / (8 * parameter + 4), dtype=torch.float64), atol=0.005, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("mix", [0.0, 1.0, 0.2])
def test_augment_keeps_form_and_repeats_with_its_generator(dtype: torch.dtype, mix: float, images: Tensor) -> None:
    scaled = (images * 255).round() if dtype is torch.uint8 else images
    batch = Batch(scaled.to(dtype), torch.arange(12) % 4)
    task = ImageTask(flip=True)
    once, again, other = (task.augment(batch, torch.Generator().manual_seed(seed), mix=mix) for seed in (7, 7, 8))
    assert once.inputs.shape == batch.inputs.shape
    assert once.inputs.dtype is dtype
    assert len(once) == 12
    assert_close(once.inputs, again.inputs, rtol=0, atol=0)
    assert not torch.equal(once.inputs, other.inputs)


def test_augment_without_crop_flip_and_mix_changes_nothing(samples: Batch, generator: torch.Generator) -> None:
    same = ImageTask(crop=0).augment(samples, generator, mix=0)
    assert_close(same.inputs, samples.inputs, rtol=0, atol=0)
    assert_close(same.targets, samples.targets)


def test_shift_and_flip_equals_the_loop(images: Tensor, generator: torch.Generator) -> None:
    down, right = torch.randint(-3, 4, (2, 12), generator=generator)
    flipped = torch.rand(12, generator=generator) < 0.5
    expected = torch.zeros_like(images)
    for n in range(12):
        source = images[n].flip(-1) if flipped[n] else images[n]
        for i in range(8):
            for j in range(8):
                row, column = i - int(down[n]), j - int(right[n])
                if 0 <= row < 8 and 0 <= column < 8:
                    expected[n, :, i, j] = source[:, row, column]
    assert_close(shift_and_flip(images, down, right, flipped), expected, rtol=0, atol=0)


class _Answers(nn.Module):
    def __init__(self, wrap: object) -> None:
        super().__init__()
        self.fc, self.wrap = nn.Linear(3, 4), wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(self.fc(x.mean((2, 3))))  # type: ignore[operator]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: z,
        lambda z: {"logits": z, "hidden": z[:, :1]},
        lambda z: (z, z[:, :1]),
        lambda z: SimpleNamespace(logits=z, aux=None),
    ],
    ids=["tensor", "dict", "tuple", "object"],
)
def test_forward_picks_the_logits(wrap: object, images: Tensor) -> None:
    model = _Answers(wrap)
    assert_close(ImageTask().forward(model, images), model.fc(images.mean((2, 3))))


def test_forward_of_uint8_equals_that_of_floats(images: Tensor) -> None:
    model, levels = _Answers(lambda z: z).double(), (images * 255).round()
    found = ImageTask().forward(model, levels.to(torch.uint8))
    assert_close(found, ImageTask().forward(model, levels.double() / 255))


def test_forward_normalises_inside(images: Tensor) -> None:
    model = _Answers(lambda z: z)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    expected = model.fc((images.mean((2, 3)) - torch.tensor(mean)) / torch.tensor(std))
    assert_close(ImageTask(mean=mean, std=std).forward(model, images), expected)
    with pytest.raises(BadData, match="3 channels, but mean and std have 1"):
        ImageTask(mean=(0.5,), std=(0.5,)).forward(model, images)


@pytest.mark.parametrize("options", [{"mean": (0.5,)}, {"mean": (0.5,), "std": (0.0,)}, {"crop": -1}])
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(BadOption):
        ImageTask(**options)  # type: ignore[arg-type]


def test_negative_mix_is_refused(samples: Batch, generator: torch.Generator) -> None:
    with pytest.raises(BadOption, match="mix is -1"):
        ImageTask().augment(samples, generator, mix=-1)


def test_accuracy_agrees_with_scikit_learn(logits: Tensor, samples: Batch) -> None:
    meter = ImageTask().meters()["accuracy"]
    meter.update(logits[:5], samples.targets[:5])
    meter.update(logits[5:], samples.targets[5:])
    expected = accuracy_score(samples.targets.numpy(), logits.argmax(1).numpy())
    assert_close(float(meter.compute()), float(expected))
    assert_close(ImageTask().correct(logits, samples.targets).float().mean().item(), float(expected))
    assert math.isnan(Accuracy().compute())


@pytest.mark.slow
def test_accuracy_agrees_with_torchmetrics(logits: Tensor, samples: Batch) -> None:
    metrics = pytest.importorskip("torchmetrics.classification")
    theirs, ours = metrics.MulticlassAccuracy(num_classes=4, average="micro"), Accuracy()
    for meter in (theirs, ours):
        meter.update(logits, samples.targets)
    assert_close(float(theirs.compute()), ours.compute())


def test_samples_per_class_counts_classes_that_occur() -> None:
    assert ImageTask().samples_per_class(torch.tensor([0, 0, 0, 7, 7, 7])) == 3.0


def test_perturbable_gives_pixels_in_unit_range(images: Tensor) -> None:
    found = ImageTask().perturbable((images * 255).to(torch.uint8))
    assert found.is_floating_point()
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


OUTPUTS = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (torch.tensor([0.0, 1.0, 2.0]), "targets.long()"),
        (torch.eye(4)[:3], "targets.argmax(1)"),
        (torch.eye(4, dtype=torch.long)[:3], "targets.argmax(1)"),
        (torch.tensor([[0], [1], [2]]), "squeeze(1)"),
        (torch.tensor([0, 1, 4]), "labels 4 do not exist in a model with 4 outputs"),
        (torch.tensor([1, 2, 3, 4]), "subtract 1"),
        (torch.tensor([0, 1, -1]), "labels -1"),
        (torch.tensor([2, 2, 2]), "all 3 clean samples are of class 2"),
        (torch.zeros(3, 5), "class indices of shape"),
    ],
)
def test_labels_that_do_not_fit_are_refused(targets: Tensor, words: str) -> None:
    batch = Batch(torch.rand(len(targets), 3, 8, 8), targets)
    with pytest.raises(BadData) as caught:
        ImageTask().inspect(batch, OUTPUTS)
    assert words in str(caught.value)


def test_outputs_that_are_no_logits_are_refused(samples: Batch) -> None:
    with pytest.raises(BadData, match="logits of shape"):
        ImageTask().inspect(samples, torch.zeros(3, 4, 8, 8))


def test_missing_classes_are_named_in_a_notice(images: Tensor) -> None:
    notices = ImageTask().inspect(Batch(images, torch.arange(12) % 2), OUTPUTS)
    assert len(notices) == 1
    assert "2 of 4 classes: 2, 3" in notices[0]


def test_pixels_beyond_the_unit_range_are_told(images: Tensor) -> None:
    notices = ImageTask().inspect(Batch(images * 4 - 2, torch.arange(12) % 4), OUTPUTS)
    assert "not within 0 to 1" in notices[0]


@pytest.mark.parametrize(
    "inputs", [torch.rand(4, 8, 8), {"pixels": torch.rand(4, 3, 8, 8)}, torch.ones(4, 3, 8, 8).int()]
)
def test_inputs_that_are_no_images_are_refused(inputs: object) -> None:
    with pytest.raises(BadData, match="give"):
        ImageTask().forward(_Answers(lambda z: z), inputs)
