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
    count: int,
    channels: int,
    height: int,
    width: int,
    generator: torch.Generator,
    *,
    rate: float = 0.2,
    beyond: bool = False,
) -> tuple[Tensor, Tensor]:
    """What is put over each image: ``(1 - share) * image + share * content``.

    Args:
        count: Number of images.
        channels: Of the content.
        height: In pixels.
        width: In pixels.
        generator: Every draw comes from it.
        rate: Probability that an image gets a rectangle; half as many get an overlay.
        beyond: Whether rectangles may reach over the border, which cuts them, so that every pixel is covered equally
            often. Of rectangles that lie within the image hardly any reaches a corner.

    Returns:
        ``share`` in [0, 1] of shape ``(count, 1, height, width)``, and ``content`` in [0, 1] of shape
        ``(count, channels, height, width)``, float32 on the generator's device.
    """
    share = torch.zeros(count, 1, height, width, device=generator.device)
    content = torch.zeros(count, channels, height, width, device=generator.device)
    covered, veiled = (_drawn(count, generator, probability) for probability in (rate, rate / 2))
    if len(covered):
        some, size = len(covered), (len(covered), channels, height, width)
        opacity = _uniform((some, 1, 1, 1), generator, *_OPACITY)
        share[covered] = opacity * _rectangles(some, height, width, generator, beyond)
        flat = _uniform((some, channels, 1, 1), generator, -0.25, 1.25).clamp(0, 1).expand(size)
        content[covered] = torch.where(_chance(some, generator, 1 / 3), flat, _patterns(size, generator))
    if len(veiled):  # the overlay lies on top of the rectangle
        faint = _uniform((len(veiled), 1, 1, 1), generator, 0.0, _OVERLAY)
        below, rectangle = (1 - faint) * share[veiled], content[veiled]
        share[veiled] = faint + below
        over = _patterns((len(veiled), channels, height, width), generator)
        content[veiled] = (faint * over + below * rectangle) / (faint + below).clamp(min=1e-6)
    return share, content


def _rectangles(count: int, height: int, width: int, generator: torch.Generator, beyond: bool) -> Tensor:
    """One in a rectangle of random size at a random place, else zero: ``(count, 1, height, width)``."""
    lines = []
    for length in (height, width):
        side = (_uniform((count, 1), generator, *_SIDES) * length).round().clamp(min=1)
        start = _uniform((count, 1), generator)
        start = (start * (length + side - 1) - side + 1 if beyond else start * (length - side + 1)).floor()
        at = torch.arange(length, device=generator.device)
        lines.append((at >= start) & (at < start + side))
    return (lines[0][:, None, :, None] & lines[1][:, None, None, :]).float()


def _patterns(size: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
    """Noise whose grain is 1, 2, 4 or 8 pixels wide, smooth or in squares, of all values or of two; shape ``size``."""
    count, channels, height, width = size
    out = torch.empty(size, device=generator.device)
    kinds = torch.randint(2 * _OCTAVES, (count,), generator=generator, device=generator.device)
    for kind in kinds.unique().tolist():
        chosen = (kinds == kind).nonzero().flatten()
        grain, mode = 2 ** (kind // 2), ("bilinear", "nearest")[kind % 2]
        grains = _uniform((len(chosen), channels, -(-height // grain), -(-width // grain)), generator)
        grains = torch.where(_chance(len(chosen), generator, 0.5), grains.round(), grains)
        out[chosen] = grains if grain == 1 else functional.interpolate(grains, (height, width), mode=mode)
    return out


def _uniform(size: tuple[int, ...], generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(size, generator=generator, device=generator.device)


def _chance(count: int, generator: torch.Generator, probability: float) -> Tensor:
    return torch.rand(count, 1, 1, 1, generator=generator, device=generator.device) < probability


def _drawn(count: int, generator: torch.Generator, probability: float) -> Tensor:
    """Indices of the images that are drawn, int64."""
    return (torch.rand(count, generator=generator, device=generator.device) < probability).nonzero().flatten()
