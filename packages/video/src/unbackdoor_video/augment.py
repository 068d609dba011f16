"""Random moves of whole clips, drawn by an explicit generator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["move", "moved"]


def moved(clip: Tensor, *, later: int = 0, down: int = 0, right: int = 0, flipped: bool = False) -> Tensor:
    """``out[t, :, i, j] = clip[t - later, :, i - down, j - right]``: zero beyond the border, held beyond the ends.

    Args:
        clip: Shape ``(frames, channels, height, width)``, any dtype.
        later: Frames to move in time.
        down: Rows to move down.
        right: Columns to move right.
        flipped: Mirror left and right first.
    """
    frames, _, height, width = clip.shape
    if flipped:
        clip = clip.flip(-1)
    if later:
        times = (torch.arange(frames, device=clip.device) - later).clamp(0, frames - 1)
        clip = clip[times]
    if not down and not right:
        return clip
    out = torch.zeros_like(clip)
    rows, columns = height - abs(down), width - abs(right)
    if rows > 0 and columns > 0:
        to_row, to_column = max(down, 0), max(right, 0)
        row, column = max(-down, 0), max(-right, 0)
        out[:, :, to_row : to_row + rows, to_column : to_column + columns] = clip[
            :, :, row : row + rows, column : column + columns
        ]
    return out


def move(clips: Tensor, generator: torch.Generator, *, crop: int, shift: int = 0, flip: bool = False) -> Tensor:
    """Each clip moved by `moved`, alike in all its frames.

    Args:
        clips: Shape ``(batch, frames, channels, height, width)``, any dtype and device.
        generator: Draws the moves.
        crop: Largest move in pixels, along each axis and in both directions.
        shift: Largest move in frames, in both directions.
        flip: Whether every second clip, by chance, is mirrored.
    """
    if crop == 0 and shift == 0 and not flip:
        return clips
    words: dict[str, Any] = {"generator": generator, "device": generator.device}
    count = len(clips)
    places = torch.randint(-crop, crop + 1, (2, count), **words).tolist() if crop else [[0] * count] * 2
    times = torch.randint(-shift, shift + 1, (count,), **words).tolist() if shift else [0] * count
    flips = (torch.rand(count, **words) < 0.5).tolist() if flip else [False] * count
    draws = zip(clips, times, *places, flips, strict=True)
    return torch.stack([moved(clip, later=t, down=y, right=x, flipped=f) for clip, t, y, x, f in draws])
