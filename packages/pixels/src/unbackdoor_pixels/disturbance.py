"""Patches and overlays that a sound model overlooks: what is put into images that a model is tuned on.

Two families, both known as augmentations for robustness: a rectangle filled with something (random erasing, Zhong et
al. 2020, arXiv 1708.04896) and a faint pattern over the whole image (additive noise of many scales). Neither is made
after any attack: places, sizes, contents and strengths are all drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unbackdoor_pixels.contents import chance, fillings, patterns, uniform

__all__ = ["OPACITY", "SIDES", "disturbance", "lay_over", "overlays"]

SIDES = (0.1, 0.35)
"""Smallest and largest side of a rectangle, as a share of the image's."""
OPACITY = (0.5, 1.0)
"""Lowest and highest opacity of a rectangle."""
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
        some = len(covered)
        opacity = uniform((some, 1, 1, 1), generator, *OPACITY)
        share[covered] = opacity * _rectangles(some, height, width, generator, beyond)
        content[covered] = fillings((some, channels, height, width), generator)
    if len(veiled):  # the overlay lies on top of the rectangle
        faint, over = _veils((len(veiled), channels, height, width), generator)
        below, rectangle = (1 - faint) * share[veiled], content[veiled]
        share[veiled] = faint + below
        content[veiled] = (faint * over + below * rectangle) / (faint + below).clamp(min=1e-6)
    return share, content


def overlays(size: tuple[int, int, int, int], generator: torch.Generator, rate: float) -> tuple[Tensor, Tensor]:
    """Faint patterns alone, over a share ``rate`` of ``size[0]`` images; as `disturbance`."""
    faint, over = _veils(size, generator)
    share = torch.where(chance(size[0], generator, rate), faint, 0.0)
    return share.expand(size[0], 1, *size[2:]), over


def lay_over(pixels: Tensor, share: Tensor, content: Tensor) -> Tensor:
    """``(1 - share) * pixels + share * content``, where the content has the range of the pixels.

    Args:
        pixels: Floats ``(batch, channels, height, width)``, or with frames before the channels.
        share: In [0, 1], that shape with one channel; for clips it may have one frame.
        content: In [0, 1], ``(batch, channels, height, width)``; clips show it in all frames.
    """
    content = content.view(len(pixels), *[1] * (pixels.ndim - 4), *content.shape[1:])
    low, high = pixels.amin().clamp(max=0), pixels.amax().clamp(min=1)
    return pixels.lerp(low + (high - low) * content.to(pixels), share.to(pixels))


def _rectangles(count: int, height: int, width: int, generator: torch.Generator, beyond: bool) -> Tensor:
    """One in a rectangle of random size at a random place, else zero: ``(count, 1, height, width)``."""
    lines = []
    for length in (height, width):
        side = (uniform((count, 1), generator, *SIDES) * length).round().clamp(min=1)
        start = uniform((count, 1), generator)
        start = (start * (length + side - 1) - side + 1 if beyond else start * (length - side + 1)).floor()
        at = torch.arange(length, device=generator.device)
        lines.append((at >= start) & (at < start + side))
    return (lines[0][:, None, :, None] & lines[1][:, None, None, :]).float()


def _veils(size: tuple[int, int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shares of shape ``(size[0], 1, 1, 1)``, and the patterns that they are of."""
    faint = uniform((size[0], 1, 1, 1), generator, 0.0, _OVERLAY)
    return faint, patterns(size, generator)


def _drawn(count: int, generator: torch.Generator, probability: float) -> Tensor:
    """Indices of the images that are drawn, int64."""
    return (torch.rand(count, generator=generator, device=generator.device) < probability).nonzero().flatten()
