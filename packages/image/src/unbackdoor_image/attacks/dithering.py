"""Quantisation of images to a few levels, with Floyd-Steinberg dithering as tensor operations on a whole batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["dither", "quantise"]

_CHUNK = 128  # images at once: their planes stay in the cache of a CPU core


def quantise(images: Tensor, levels: int) -> Tensor:
    """``round(x (levels - 1)) / (levels - 1)`` for pixels in [0, 1]."""
    return (images * (levels - 1)).round() / (levels - 1)


def dither(images: Tensor, levels: int) -> Tensor:
    """Quantise in raster order and hand each pixel's error on: 7/16 right, 3/16, 5/16 and 1/16 to the row below.

    Pixel ``(i, j)`` needs ``(i, j - 1)`` and ``(i - 1, j - 1 .. j + 1)`` alone, so all pixels with one ``j + 2 i`` are
    done at once: ``width + 2 height`` steps in place of ``width * height``.

    Args:
        images: Floats in [0, 1], shape ``(batch, channels, height, width)``.
        levels: Number of levels of a channel, at least 2.
    """
    return torch.cat([_dithered(some, levels) for some in images.split(_CHUNK)]) if len(images) else images.clone()


def _dithered(images: Tensor, levels: int) -> Tensor:
    count, channels, height, width = images.shape
    steps = width + 2 * (height - 1)
    rows = torch.arange(height, device=images.device)
    times = torch.arange(steps, device=images.device)
    columns = times[:, None] - 2 * rows  # (steps, height): the column of row i at time t
    inside = ((columns >= 0) & (columns < width))[..., None].to(images.dtype)
    pixels = images.permute(2, 3, 0, 1).reshape(height, width, count * channels)
    skewed = pixels[rows, columns.clamp(0, width - 1)] * inside
    skewed = functional.pad(skewed, (0, 0, 0, 1, 0, 3))  # one row and three times more take the errors that leave
    out = torch.empty_like(skewed[:steps, :height])
    for time in range(steps):
        value = skewed[time, :height]
        out[time] = quantise(value, levels).clamp(0, 1)
        error = (value - out[time]) * inside[time]
        skewed[time + 1, :height].add_(error, alpha=7 / 16)
        skewed[time + 1, 1:].add_(error, alpha=3 / 16)
        skewed[time + 2, 1:].add_(error, alpha=5 / 16)
        skewed[time + 3, 1:].add_(error, alpha=1 / 16)
    straight = torch.arange(width, device=images.device) + 2 * rows[:, None]
    done = out[straight, rows[:, None]]
    return done.reshape(height, width, count, channels).permute(2, 3, 0, 1).contiguous()
