"""Patches and overlays that a sound model overlooks: what is put into images that a model is tuned on.

Two families, both known as augmentations for robustness: a rectangle filled with something (random erasing, Zhong et
al. 2020, arXiv 1708.04896) and a faint pattern over the whole image (additive noise of many scales). Neither is made
after any attack: places, sizes, contents and strengths are all drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["disturbance"]

_OCTAVES = 4
_SIDES = (0.1, 0.35)
"""Smallest and largest side of a rectangle, as a share of the image's."""
_OPACITY = (0.5, 1.0)
_OVERLAY = 0.3
"""Largest share of a pattern over the whole image."""


def disturbance(
    count: int, channels: int, height: int, width: int, generator: torch.Generator, *, rate: float = 0.8
) -> tuple[Tensor, Tensor]:
    """What is put over each image: ``(1 - share) * image + share * content``.

    Args:
        count: Number of images.
        channels: Of the content.
        height: In pixels.
        width: In pixels.
        generator: Every draw comes from it.
        rate: Probability that an image gets a rectangle; half as many get an overlay.

    Returns:
        ``share`` in [0, 1] of shape ``(count, 1, height, width)``, and ``content`` in [0, 1] of shape
        ``(count, channels, height, width)``, float32 on the generator's device.
    """
    inside = _rectangles(count, height, width, generator)
    flat = _uniform((count, channels, 1, 1), generator, -0.25, 1.25).clamp(0, 1)
    plain = _chance(count, generator, 1 / 3)
    patterns = _patterns(count, channels, height, width, generator)
    filled = torch.where(plain, flat.expand_as(patterns), patterns)
    opacity = _uniform((count, 1, 1, 1), generator, *_OPACITY) * _chance(count, generator, rate)
    over = _patterns(count, channels, height, width, generator)
    faint = _uniform((count, 1, 1, 1), generator, 0.0, _OVERLAY) * _chance(count, generator, rate / 2)
    # the overlay lies on top of the rectangle
    below = opacity * inside
    share = 1 - (1 - below) * (1 - faint)
    content = (faint * over + (1 - faint) * below * filled) / share.clamp(min=1e-6)
    return share, content.clamp(0, 1)


def _rectangles(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """One in a rectangle of random size at a random place, else zero: ``(count, 1, height, width)``."""
    lines = []
    for length in (height, width):
        side = (_uniform((count, 1), generator, *_SIDES) * length).round().clamp(min=1)
        start = (_uniform((count, 1), generator) * (length - side + 1)).floor()
        at = torch.arange(length, device=generator.device)
        lines.append((at >= start) & (at < start + side))
    return (lines[0][:, None, :, None] & lines[1][:, None, None, :]).float()


def _patterns(count: int, channels: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Noise whose grain is 1, 2, 4 or 8 pixels wide, smooth or in squares, of all values or of two."""
    out = torch.empty(count, channels, height, width, device=generator.device)
    octaves = torch.randint(_OCTAVES, (count,), generator=generator, device=generator.device)
    smooth = torch.rand(count, generator=generator, device=generator.device) < 0.5
    for octave in range(_OCTAVES):
        for mode in ("bilinear", "nearest"):
            chosen = ((octaves == octave) & (smooth == (mode == "bilinear"))).nonzero().flatten()
            if not len(chosen):
                continue
            size = (len(chosen), channels, -(-height // 2**octave), -(-width // 2**octave))
            grains = _uniform(size, generator)
            grains = torch.where(_chance(len(chosen), generator, 0.5), grains.round(), grains)
            out[chosen] = functional.interpolate(grains, (height, width), mode=mode)
    return out


def _uniform(size: tuple[int, ...], generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(size, generator=generator, device=generator.device)


def _chance(count: int, generator: torch.Generator, probability: float) -> Tensor:
    return torch.rand(count, 1, 1, 1, generator=generator, device=generator.device) < probability
