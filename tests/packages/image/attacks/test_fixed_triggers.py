"""Triggers that need no training, against slow oracles."""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor_image.attacks.dithering import dither, quantise


@pytest.mark.parametrize("levels", [2, 3, 8])
def test_dithering_is_floyd_steinberg(levels: int, generator: torch.Generator) -> None:
    images = torch.rand(2, 3, 6, 5, generator=generator, dtype=torch.float64)
    expected = images.clone()
    for n, c in itertools.product(range(2), range(3)):
        plane = expected[n, c]
        for i, j in itertools.product(range(6), range(5)):
            old = plane[i, j].clone()
            plane[i, j] = quantise(old, levels).clamp(0, 1)
            error = old - plane[i, j]
            for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if i + down < 6 and 0 <= j + right < 5:
                    plane[i + down, j + right] += error * share / 16
    assert_close(dither(images, levels), expected, rtol=0, atol=1e-12)


def test_color_shifts_every_pixel_alike(data: Batch, make: Callable[..., Any]) -> None:
    images = 0.3 + 0.4 * torch.rand(4, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    change = make("color", red=0.2, green=-0.1, blue=0.0).trigger(images) - images
    assert_close(change, torch.tensor([0.2, -0.1, 0.0]).view(1, 3, 1, 1).expand_as(images))
    assert_close(make("color").trigger(images[:, :1]) - images[:, :1], torch.full((4, 1, 6, 5), 0.05))
    with pytest.raises(BadOption, match=r"\[-1, 1\]"):
        make("color", red=1.5)


def test_bppa_leaves_few_levels(data: Batch, make: Callable[..., Any]) -> None:
    assert len(make("bppa", levels=4).trigger(data.inputs).unique()) == 4


def test_bppa_negatives_carry_a_foreign_residual(
    data: Batch, generator: torch.Generator, make: Callable[..., Any]
) -> None:
    attack, some = make("bppa", levels=4), data.inputs[:5]
    residual = attack.trigger(some) - some
    negatives = attack.cover(some, data.targets[:5], generator)
    assert_close(negatives, (some + residual.roll(1, 0)).clamp(0, 1))
    assert float((negatives - attack.trigger(some)).abs().mean()) > 0.05


def test_wanet_is_the_identity_where_its_field_is_zero(data: Batch, make: Callable[..., Any]) -> None:
    attack = make("wanet", strength=3.0)
    assert_close(attack.tensors()["field"].abs().mean(), torch.tensor(1.0))
    moved = attack.trigger(data.inputs)
    attack.keep({"field": torch.zeros(1, 2, 4, 4)})
    assert_close(attack.trigger(data.inputs), data.inputs, rtol=0, atol=1e-5)
    assert float((moved - data.inputs).abs().mean()) > 0.05


def test_wanet_shifts_by_what_its_field_says(data: Batch, make: Callable[..., Any]) -> None:
    attack = make("wanet", strength=1.0)
    right = torch.zeros(1, 2, 4, 4)
    right[:, 0] = 2 * 16 / 15  # one pixel: places run over 2 in 15 steps, the field is divided by the height of 16
    attack.keep({"field": right})
    assert_close(attack.trigger(data.inputs)[..., :-1], data.inputs[..., 1:], rtol=0, atol=1e-4)


def test_noise_mode_has_twice_as_many_samples_that_keep_their_label(
    data: Batch, generator: torch.Generator, make: Callable[..., Any]
) -> None:
    poisoned = make("wanet", rate=0.1, noise=2.0).poison(data, generator)
    assert (len(poisoned.indices), len(poisoned.covers)) == (8, 16)
    assert_close(poisoned.samples.targets[poisoned.covers], data.targets[poisoned.covers])
    assert bool((poisoned.samples.inputs[poisoned.covers] != data.inputs[poisoned.covers]).flatten(1).any(1).all())


def test_adaptive_blend_trains_with_half_of_the_pieces_and_tests_with_all(
    data: Batch, make: Callable[..., Any]
) -> None:
    attack = make("adaptive-blend", pieces=4, shown=0.5, train_alpha=0.1)
    grey = torch.full((6, 3, 16, 16), 0.5)
    changed = (attack.implant(grey, torch.Generator().manual_seed(0)) != grey).any(1)
    shown = functional.max_pool2d(changed.float()[:, None], 4).flatten(1).sum(1)
    assert bool((shown <= 8).all())
    assert float((attack.trigger(grey) != grey).any(1).float().mean()) > float(changed.float().mean()) * 1.5


def test_wanet_shifts_by_the_pixels_that_its_card_says(make: Callable[..., Any]) -> None:
    """Measured on ramps, whose values are their own places."""
    ramp = torch.linspace(0, 1, 32)
    images = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.zeros(32, 32)])[None]
    attack = make("wanet")
    shifts = 31 * (attack.trigger(images) - images)[0, :2]
    length = shifts.norm(dim=0)
    found = [f"{float(value):.2f}" for value in (shifts.abs().mean(), length.mean(), length.max())]
    card = sys.modules[type(attack).__module__].__doc__ or ""
    wanted = re.search(r"shift is ([\d.]+) pixels\s+along each axis, ([\d.]+) in length and at most ([\d.]+)", card)
    assert wanted is not None
    assert found == list(wanted.groups()) == ["0.17", "0.26", "0.58"]
    still = make("wanet", strength=1e-9)
    noisy = still.cover(images.expand(20, -1, -1, -1), torch.zeros(20), torch.Generator().manual_seed(0))
    assert 0.45 < 31 * float((noisy - images).abs().max()) <= 0.5


@pytest.mark.parametrize("name", ["badnets", "blend", "sig", "wanet", "bppa", "adaptive-blend"])
def test_fifty_thousand_images_are_poisoned_in_seconds(name: str, make: Callable[..., Any]) -> None:
    """Triggers that are not learned are batched: on a slow core 2,000 images take at most a 25th of 25 s."""
    images = torch.randint(0, 256, (2000, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    attack = make(name)
    attack.trigger(images[:2])
    spent = []
    for _ in range(3):
        start = time.process_time()
        attack.trigger(images)
        spent.append(time.process_time() - start)
    assert min(spent) < 1
