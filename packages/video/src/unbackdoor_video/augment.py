"""Random moves of whole clips, drawn by an explicit generator."""

from __future__ import annotations

import torch
from torch import Tensor

from unbackdoor_pixels import random_geometry

__all__ = ["later", "move"]


def later(clips: Tensor, by: Tensor) -> Tensor:
    """``out[n, t] = clips[n, t - by[n]]``, where the first and the last frame are held.

    Args:
        clips: Shape ``(batch, frames, ...)``, any dtype.
        by: Frames to move in time, int64 of shape ``(batch,)``.
    """
    frames = clips.shape[1]
    times = (torch.arange(frames, device=clips.device) - by[:, None]).clamp(0, frames - 1)
    return clips[torch.arange(len(clips), device=clips.device)[:, None], times]


def move(clips: Tensor, generator: torch.Generator, *, crop: int, shift: int = 0, flip: bool = False) -> Tensor:
    """Each clip moved in space, zero beyond the border, and in time, held beyond the ends; alike in all its frames.

    Args:
        clips: Shape ``(batch, frames, channels, height, width)``, any dtype and device.
        generator: Draws the moves.
        crop: Largest move in pixels, along each axis and in both directions.
        shift: Largest move in frames, in both directions.
        flip: Whether every second clip, by chance, is mirrored.
    """
    # frames as further channels are moved alike
    moved = random_geometry(clips.flatten(1, 2), generator, crop=crop, flip=flip).view(clips.shape)
    if shift == 0:
        return moved
    by = torch.randint(-shift, shift + 1, (len(clips),), generator=generator, device=generator.device)
    return later(moved, by.to(clips.device))
