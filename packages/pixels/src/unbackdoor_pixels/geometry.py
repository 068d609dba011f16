"""Random shifts and mirror images, as tensor operations on a whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["random_geometry", "shift_and_flip"]


def shift_and_flip(images: Tensor, down: Tensor, right: Tensor, flipped: Tensor) -> Tensor:
    """``out[n, :, i, j] = images[n, :, i - down[n], j - right[n]]``, zero beyond the border.

    Where ``flipped`` holds, the image is mirrored left to right before it is shifted.

    Args:
        images: Shape ``(batch, channels, height, width)``, any dtype.
        down: Rows to move down, int64 of shape ``(batch,)``.
        right: Columns to move right, int64 of shape ``(batch,)``.
        flipped: Bool of shape ``(batch,)``.
    """
    count, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device) - down[:, None]
    columns = torch.arange(width, device=images.device) - right[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    columns = torch.where(flipped[:, None], width - 1 - columns, columns)
    places = (rows[:, :, None] * width + columns[:, None, :]).reshape(count, 1, height * width)
    moved = images.reshape(count, channels, height * width).gather(2, places.expand(-1, channels, -1))
    return moved.reshape(images.shape) * inside[:, None].to(images.dtype)


def random_geometry(images: Tensor, generator: torch.Generator, *, crop: int, flip: bool) -> Tensor:
    """A crop of the zero-padded image at a random place and, if ``flip``, a mirror image of every second one.

    Args:
        images: Shape ``(batch, channels, height, width)``, any dtype.
        generator: Draws places and flips, on its own device.
        crop: Largest shift in pixels, along each axis and in both directions; 0 leaves images where they are.
        flip: Whether left and right may change places.
    """
    if crop == 0 and not flip:
        return images
    count = len(images)
    shifts = torch.randint(-crop, crop + 1, (2, count), generator=generator, device=generator.device)
    flips = torch.zeros(count, dtype=torch.bool)
    if flip:
        flips = torch.rand(count, generator=generator, device=generator.device) < 0.5
    down, right = shifts.to(images.device)
    return shift_and_flip(images, down, right, flips.to(images.device))
