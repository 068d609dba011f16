"""Strong augmentation of pixels: changes of many families that leave an image's label as it is.

All of them are transforms of ``torchvision.transforms.v2``. As in TrivialAugment (Müller and Hutter 2021, arXiv
2103.10158) each sample gets one, and nothing is tuned: transform and strength are drawn evenly. Families have names, so
that a measurement can leave out whatever resembles the trigger that it measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from unbackdoor.errors import BadOption
from unbackdoor.network.backend import seeded

__all__ = ["FAMILIES", "strong"]

FAMILIES = ("patch", "noise", "colour", "geometry", "blur")
"""Rectangles; noise of every pixel; curves of colours; moves and warps; blur, sharpness and fewer levels."""
_TOGETHER = 8
"""Images that get one draw of a transform: its parameters are drawn on the CPU, one after the other."""


@lru_cache(maxsize=8)
def _transforms(side: int) -> Mapping[str, tuple[nn.Module, ...]]:
    """Of images whose shorter side has so many pixels: lengths are shares of it."""
    from torchvision.transforms import v2  # takes a second to import

    width = max(side / 16, 0.5)
    smooth = max(side * 3 / 32, 0.5)
    return {
        "patch": (v2.RandomErasing(1.0, scale=(0.02, 0.2), value="random"), v2.RandomErasing(1.0, scale=(0.02, 0.2))),
        "noise": (v2.GaussianNoise(sigma=0.05), v2.GaussianNoise(sigma=0.1), v2.GaussianNoise(sigma=0.2)),
        "colour": (
            v2.ColorJitter(brightness=0.6),
            v2.ColorJitter(contrast=0.6),
            v2.ColorJitter(saturation=0.6, hue=0.3),
            v2.ColorJitter(0.6, 0.6, 0.6, 0.3),
            v2.RandomGrayscale(1.0),
            v2.RandomAutocontrast(1.0),
            v2.RandomEqualize(1.0),
            v2.RandomSolarize(0.5, 1.0),
        ),
        "geometry": (
            v2.RandomRotation(35),
            v2.RandomAffine(0, translate=(0.2, 0.2)),
            v2.RandomAffine(0, scale=(0.8, 1.25)),
            v2.RandomAffine(0, shear=(-20, 20, -20, 20)),
            v2.RandomPerspective(0.3, 1.0),
            v2.ElasticTransform(alpha=0.5 * side * smooth, sigma=smooth),
        ),
        "blur": (
            v2.GaussianBlur(2 * math.ceil(2 * width) + 1, (0.15 * width, width)),
            v2.RandomAdjustSharpness(2.0, 1.0),
            v2.RandomPosterize(2, 1.0),
            v2.RandomPosterize(3, 1.0),
        ),
    }


def strong(pixels: Tensor, generator: torch.Generator, *, without: Collection[str] = ()) -> Tensor:
    """Each sample with one transform: a family is drawn, then one of its transforms, then that one's strength.

    Args:
        pixels: Floats ``(batch, channels, height, width)`` in [0, 1], or with frames before the channels, which all
            get the same.
        generator: Every draw comes from it.
        without: Families to leave out.

    Raises:
        BadOption: A family is unknown, or all are left out.
    """
    unknown = set(without) - set(FAMILIES)
    families = [name for name in FAMILIES if name not in without]
    if unknown or not families:
        raise BadOption(
            f"without is {', '.join(sorted(without))}; name some of {', '.join(FAMILIES)}, not all of them."
        )
    order = torch.randperm(len(pixels), generator=generator, device=generator.device).to(pixels.device)
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    out = pixels.clone()
    with seeded(seed, pixels.device):
        for some in order.split(_TOGETHER):
            transforms = _transforms(min(pixels.shape[-2:]))[families[int(torch.randint(len(families), ()))]]
            change = transforms[int(torch.randint(len(transforms), ()))]
            out[some] = _in_colour(change, pixels[some])
    return out.clamp(0, 1)


def _in_colour(change: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """Where there are no three channels, each is changed as a grey image of three: transforms of colours want them."""
    if pixels.shape[-3] == 3:
        return change(pixels)
    grey = pixels.unsqueeze(-3).expand(*pixels.shape[:-2], 3, *pixels.shape[-2:])
    return change(grey).mean(-3)
