"""What a classifier of several labels, or a detector, gives instead of logits, and samples that it reads otherwise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.defender.preflight.check import misfit
from unbackdoor.defender.preflight.standing import standing
from unbackdoor.errors import BadData, PreflightFailed
from unbackdoor.task import Batch
from unbackdoor_multilabel import MultilabelTask
from unbackdoor_multilabel.detection import DetectionTask, detection_batch

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TASK = MultilabelTask(mean=MEAN, std=STD)


class Colours(nn.Module):
    """Which of three colours an image holds, from its normalised channels."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.scale, self.last = nn.Parameter(torch.tensor(20.0)), last

    def forward(self, x):
        """Above the mean of its channel a colour is there."""
        return self.last(self.scale * x.mean((2, 3)))


@pytest.fixture(scope="module")
def coloured():
    """Images of which each shows some of three colours, a sixth of the deviation above the usual mean."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(2, (60, 3), generator=generator)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    noise = 0.5 * torch.randn(60, 3, 12, 12, generator=generator)
    pixels = mean + std * ((2.0 * rows - 1)[:, :, None, None] / 6 + noise)
    return Batch((255 * pixels.clamp(0, 1)).round().to(torch.uint8), rows)


def why(clean, task, model):
    return misfit(standing(model, clean, task), model, clean, task, labelled=True)


# ------------------------------------------------------------------------------------------------- probabilities


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_probabilities_are_turned_into_the_logits_they_stand_for(dtype):
    logits = torch.tensor([[-2.0, 0.5, 3.0], [1.0, -0.25, 0.0]], dtype=dtype)
    likely = logits.double().sigmoid().to(dtype)
    change = TASK.as_logits(likely)
    assert change is not None
    assert_close(change(likely), logits, rtol=0.02, atol=0.02)
    sure = change(torch.tensor([[0.0, 1.0]], dtype=dtype))
    assert bool(sure.isfinite().all())
    assert sure[0, 0] < -5 < 5 < sure[0, 1]


@pytest.mark.parametrize(
    "outputs",
    [
        torch.tensor([[-0.1, 0.4], [0.3, 0.9]]),
        torch.tensor([[0.1, 0.4], [0.3, 1.1]]),
        torch.tensor([[0.5, 0.9], [0.7, 1.0]]),
        torch.tensor([[0.1, math.nan]]),
        torch.rand(2, 3, 4),
        {"logits": torch.rand(2, 3)},
    ],
    ids=["negative", "above one", "all there either way", "nan", "three dimensions", "no tensor"],
)
def test_logits_and_what_may_be_logits_stay_as_they_are(outputs):
    assert TASK.as_logits(outputs) is None


def test_a_model_that_ends_with_a_sigmoid_is_tuned_as_one_without(coloured):
    words = {"task": TASK, "method": "ft", "steps": 2, "batch_size": 20}
    made, report = unbackdoor.purify(Colours(nn.Sigmoid()), coloured, **words)
    plain, _ = unbackdoor.purify(Colours(nn.Identity()), coloured, **words)
    assert any("probabilities" in notice for notice in report.notices)
    assert float(plain.scale.detach()) != 20
    assert_close(made.scale, plain.scale, rtol=1e-3, atol=0)


# ----------------------------------------------------------------------------------------- chance and other readings


@pytest.mark.parametrize("labels", [1.0, 2.0])
def test_uninformed_says_of_each_class_how_often_it_is_there(rows, labels):
    task = MultilabelTask(labels=labels)
    often = (rows.double().sum(0) + 0.5) / (len(rows) + 1)
    expected = task.log_likelihood(often.logit().expand(len(rows), -1), rows)
    assert_close(task.uninformed(rows), expected)


def test_uninformed_is_finite_where_a_class_is_always_or_never_there():
    found = TASK.uninformed(torch.tensor([[1, 0], [1, 0], [1, 0]]))
    assert bool(found.isfinite().all())
    assert_close(found, torch.full((3,), 2 * math.log(3.5 / 4) / TASK.labels, dtype=torch.float64))


def test_a_model_that_knows_nothing_is_at_chance(coloured):
    class Blind(Colours):
        def forward(self, x):
            return 0 * super().forward(x)

    found = standing(Blind(nn.Identity()), coloured, TASK)
    assert found.wins is not None
    assert not found.above_chance
    assert standing(Colours(nn.Identity()), coloured, TASK).above_chance


def test_images_that_are_normalised_otherwise_are_told(coloured):
    model = Colours(nn.Identity())
    assert why(coloured, TASK, model) is None
    flags = "--mean 0.4914,0.4822,0.4465"
    assert flags in why(coloured, MultilabelTask(), model)
    with pytest.raises(PreflightFailed, match=flags):
        unbackdoor.purify(model, coloured, task=MultilabelTask(), method="ft", steps=1)


# ------------------------------------------------------------------------------------------------------- detectors


def boxed(images, boxes):
    truth = [{"boxes": torch.tensor([box]), "labels": torch.tensor([1])} for box in boxes]
    return detection_batch(images, truth)


def test_whether_a_detector_is_at_chance_is_not_asked():
    batch = boxed(torch.rand(2, 3, 16, 16), [[1.0, 2, 8, 9], [2.0, 2, 6, 7]])
    assert DetectionTask().uninformed(batch.targets) is None
    assert list(DetectionTask().readings(batch)) == []


def test_boxes_and_pixels_that_a_detector_does_not_expect_are_told():
    task, images = DetectionTask(), torch.rand(2, 3, 10, 20)
    right = boxed(images, [[1.0, 2, 8, 9], [2.0, 2, 20, 10]])
    assert task.inspect(right, None) == []
    (text,) = task.inspect(boxed(images, [[1.0, 2, 8, 9], [2.0, 2, 6, 14]]), None)
    assert text.startswith("1 of 2 boxes reach beyond their image of 20 x 10 pixels")
    (text,) = task.inspect(replace(right, inputs={**right.inputs, "images": 255 * images}), None)
    assert text.startswith("pixels range from ")
    assert task.inspect(replace(right, inputs={**right.inputs, "images": (255 * images).byte()}), None) == []
    with pytest.raises(BadData, match="shares of an image"):
        task.inspect(boxed(images, [[0.1, 0.2, 0.8, 0.9], [0.0, 0.0, 1.0, 0.5]]), None)
