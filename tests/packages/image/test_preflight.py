"""A photo classifier whose photos are read otherwise than it was trained stops, and the flag that mends it is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import unbackdoor
from unbackdoor.defender.preflight.check import misfit
from unbackdoor.defender.preflight.standing import standing
from unbackdoor.errors import BadOption, PreflightFailed
from unbackdoor.task import Batch
from unbackdoor_image import ImageTask
from unbackdoor_pixels.readings import NORMALISATIONS

CIFAR10 = NORMALISATIONS["CIFAR-10's"]
RIGHT = ImageTask(mean=CIFAR10[0], std=CIFAR10[1])


def drawn(count, seed):
    """Colours on a noisy ground, six classes, with the statistics of CIFAR-10 in each channel."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 6
    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, -1, 0], [0, 0, -1]]).float()
    noise = torch.randn(count, 3, 8, 8, generator=generator)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in CIFAR10)
    pixels = mean + std * (0.45 * colours[targets][:, :, None, None] + 0.9 * noise)
    return Batch((255 * pixels.clamp(0, 1)).round().to(torch.uint8), targets)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(
            *(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, stride=2), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 6)),
        )
    optimiser = torch.optim.Adam(made.parameters(), lr=0.02)
    for step in range(60):
        batch = drawn(96, step)
        optimiser.zero_grad()
        nn.functional.cross_entropy(RIGHT.forward(made, batch.inputs), batch.targets).backward()
        optimiser.step()
    optimiser.zero_grad()
    return made.eval()


@pytest.fixture(scope="module")
def clean():
    return drawn(240, 1000)


def why(model, clean, task):
    return misfit(standing(model, clean, task), model, clean, task, labelled=True)


@pytest.mark.parametrize("count", [24, 60, 240])
def test_photos_that_are_read_right_are_not_accused(model, count):
    clean = drawn(count, 7)
    assert standing(model, clean, RIGHT).accuracy > 60
    assert why(model, clean, RIGHT) is None


@pytest.mark.parametrize("wrong", ["none", "to -1..1", "0..255", "SVHN's and blue first"])
def test_right_normalisation_is_named(model, clean, wrong):
    task = ImageTask()
    if wrong in NORMALISATIONS:
        task = ImageTask(mean=NORMALISATIONS[wrong][0], std=NORMALISATIONS[wrong][1])
    text = why(model, clean, task if "blue" not in wrong else replace(RIGHT, bgr=True))
    flags = "--mean 0.4914,0.4822,0.4465 --std 0.2470,0.2435,0.2616 (CIFAR-10's)"
    assert (flags if "blue" not in wrong else "--task-option bgr=false") in text


def test_pixels_in_0_to_255_as_floats_are_told(model, clean):
    assert "pixels divided by 255" in why(model, replace(clean, inputs=clean.inputs.float()), RIGHT)


def test_pixels_that_are_normalised_twice_are_told(model, clean):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in CIFAR10)
    twice = replace(clean, inputs=(clean.inputs / 255 - mean) / std)
    assert why(model, twice, ImageTask()) is None
    text = why(model, twice, RIGHT)
    assert text is None or "no --mean and --std" in text
    other = ImageTask(mean=(0.5, 0.5, 0.5), std=(0.05, 0.05, 0.05))
    assert "no --mean and --std" in why(model, twice, other)


def test_purify_stops_without_the_normalisation_and_runs_with_it(model, clean):
    with pytest.raises(PreflightFailed, match=r"--mean 0.4914,0.4822,0.4465 --std 0.2470,0.2435,0.2616"):
        unbackdoor.purify(model, clean, task=ImageTask(), method="ft", steps=2)
    _, report = unbackdoor.purify(model, clean, task=RIGHT, method="ft", steps=2, lr=0.001)
    assert report.overruled == ()


def test_channels_in_the_order_of_opencv_are_read_so(model, clean):
    swapped = replace(clean, inputs=clean.inputs.flip(1))
    with torch.no_grad():
        there = replace(RIGHT, mean=CIFAR10[0], bgr=True).forward(model, swapped.inputs)
        assert torch.allclose(there, RIGHT.forward(model, clean.inputs), atol=1e-5)


@pytest.mark.parametrize(
    ("mean", "std", "told"),
    [
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "0.485,0.456,0.406"),
        ((0.5, -0.1, 0.5), (0.5, 0.5, 0.5), "must lie there"),
        ((0.485, 0.456, 0.406), (58.395, 57.12, 57.375), "divide by 255"),
        ((0.5, 0.5, 0.5), (0.5, 0.0, 0.5), "above 0"),
    ],
)
def test_normalisations_of_other_pixels_are_refused(mean, std, told):
    with pytest.raises(BadOption, match=told):
        ImageTask(mean=mean, std=std)


def test_doubtful_photos_are_named_by_file_and_class(model, clean):
    names = tuple(f"photos/{place:03}.png" for place in range(len(clean)))
    logits = RIGHT.forward(model, clean.inputs)
    surest = int((logits.softmax(1).amax(1).detach() * (logits.argmax(1) == clean.targets)).argmax())
    targets = clean.targets.clone()
    targets[surest] = (targets[surest] + 1) % 6
    given = Batch(clean.inputs, targets, names, ("red", "green", "blue", "cyan", "pink", "yellow"))
    _, report = unbackdoor.purify(model, given, task=RIGHT, method="ft", steps=1, lr=0.001)
    (text,) = [text for text in report.notices if "unlikely" in text]
    assert names[surest] in text
    assert "The first is labelled '" in text
    assert "counted from 0" not in text
