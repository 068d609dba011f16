"""Strong augmentation of pixels."""

from __future__ import annotations

import pytest
import torch

from unbackdoor.errors import BadOption
from unbackdoor.testing import tiny_models
from unbackdoor_image import ImageTask
from unbackdoor_pixels.strong import FAMILIES, _transforms, strong


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "shape", [(9, 3, 32, 32), (9, 1, 16, 16), (5, 2, 8, 11), (4, 6, 3, 16, 16)], ids=["rgb", "grey", "two", "clips"]
)
def test_every_family_keeps_form_and_range(shape: tuple[int, ...]) -> None:
    pixels = torch.rand(shape, generator=drawn())
    given = pixels.clone()
    for family in FAMILIES:
        for seed in range(8):
            out = strong(pixels, drawn(seed), without=set(FAMILIES) - {family})
            assert out.shape == pixels.shape
            assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert torch.equal(pixels, given)


def test_every_transform_changes_an_image_of_every_size() -> None:
    for side in (8, 32, 96):
        smooth = torch.linspace(0.1, 0.9, side)
        image = (smooth.view(1, -1) * smooth.view(-1, 1)).sqrt().expand(3, side, side).clone()
        image[0] *= 0.5
        image[:, side // 4 : side // 2, side // 3 :] += 0.1
        with torch.random.fork_rng(devices=[]):
            for family, transforms in _transforms(side).items():
                for transform in transforms:
                    changed = any(not torch.equal(transform(image[None]), image[None]) for _ in range(8))
                    assert changed, (family, transform)


def test_draws_come_from_the_generator_alone() -> None:
    pixels = torch.rand(40, 3, 16, 16, generator=drawn())
    state = torch.get_rng_state()
    first = strong(pixels, drawn(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(strong(pixels, drawn(1)), first)
    assert not torch.equal(strong(pixels, drawn(2)), first)


def test_families_that_are_left_out_are_not_drawn() -> None:
    grey = torch.full((64, 3, 16, 16), 0.5)
    for seed in range(5):
        even = strong(grey, drawn(seed), without={"patch", "noise", "colour", "geometry"})
        torch.testing.assert_close(even, even[..., :1, :1].expand_as(even))
    with pytest.raises(BadOption, match="patch, noise, colour, geometry, blur"):
        strong(grey, drawn(), without={"rain"})
    with pytest.raises(BadOption, match="not all"):
        strong(grey, drawn(), without=FAMILIES)


def test_pixels_that_were_normalised_beforehand_keep_their_range() -> None:
    pixels = 4 * torch.rand(32, 3, 16, 16, generator=drawn()) - 2
    out = ImageTask().strong_augment(pixels, drawn())
    low, high = float(pixels.min()), float(pixels.max())
    assert low - 1e-5 <= float(out.min()) < -1
    assert 1 < float(out.max()) <= high + 1e-5
    levels = (255 * torch.rand(4, 3, 16, 16, generator=drawn())).to(torch.uint8)
    assert ImageTask().strong_augment(levels, drawn()).dtype is torch.float32


def test_task_without_strong_changes_gives_the_inputs() -> None:
    from unbackdoor.testing import ClassificationTask

    batch = tiny_models()["conv-bn"].batch(4)
    assert ClassificationTask().strong_augment(batch.inputs, drawn()) is batch.inputs
