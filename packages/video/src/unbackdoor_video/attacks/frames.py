"""How a trigger reaches the frames of a clip, and how large a patch is on frames of another resolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unbackdoor.errors import BadData, BadOption
from unbackdoor_pixels import check_clips

__all__ = ["CORNERS", "check_patch", "corner_of", "on_frames", "patch_side", "put_patch"]

CORNERS = ("bottom_right", "bottom_left", "top_right", "top_left")
REFERENCE = 224
"""Shorter side in pixels of the papers' frames: sizes of patches are given for it."""


def on_frames(inputs: Any, change: Callable[[Tensor], Tensor]) -> Tensor:
    """``change(clips)`` with pixels in [0, 1], clamped, in the dtype that came in.

    Args:
        inputs: Clips, ``uint8`` in 0..255 or floats in [0, 1].
        change: Gets floats ``(batch, frames, channels, height, width)`` and returns such; it must not write into its
            argument.

    Returns:
        Same shape, dtype and device; ``uint8`` is rounded to the nearest level.

    Raises:
        BadData: The inputs are no clips.
    """
    clips = check_clips(inputs)
    if clips.is_floating_point():
        return change(clips).clamp(0, 1)
    # clip by clip, since floats take four times the memory
    parts = [(change(some.float() / 255).clamp(0, 1) * 255).round().to(torch.uint8) for some in clips.split(16)]
    return torch.cat(parts) if parts else clips.clone()


def patch_side(size: int, clips: Tensor, *, scaled: bool) -> int:
    """Side in pixels of a patch that has ``size`` pixels on the papers' frames, at least 1.

    Args:
        size: Side for a shorter side of 224 pixels; as it is where ``scaled`` is off.
        clips: For their height and width.
        scaled: Whether the patch shrinks and grows with the frame.

    Raises:
        BadData: The patch is larger than the frame.
    """
    short = min(clips.shape[-2:])
    side = max(1, round(size * short / REFERENCE)) if scaled else size
    if side > short:
        raise BadData(
            f"a patch of {side} pixels does not fit on frames of {clips.shape[-2]} x {clips.shape[-1]}; lower size."
        )
    return side


def corner_of(corner: str, side: int, clips: Tensor) -> tuple[slice, slice]:
    """Rows and columns of a square of ``side`` pixels in one of `CORNERS`."""
    height, width = clips.shape[-2:]
    vertical, horizontal = corner.split("_")
    rows = slice(height - side, height) if vertical == "bottom" else slice(0, side)
    columns = slice(width - side, width) if horizontal == "right" else slice(0, side)
    return rows, columns


def put_patch(clips: Tensor, patch: Tensor, corner: str, opacity: float = 1.0) -> Tensor:
    """A copy of ``clips`` with ``patch`` in ``corner`` of every frame: ``(1 - opacity) x + opacity patch``.

    Args:
        clips: Floats ``(batch, frames, channels, height, width)``.
        patch: Broadcastable to ``(channels, side, side)``; its gradient is kept.
        corner: One of `CORNERS`.
        opacity: 0 (invisible) to 1.
    """
    rows, columns = corner_of(corner, patch.shape[-1], clips)
    out = clips.clone()
    out[..., rows, columns] = (1 - opacity) * clips[..., rows, columns] + opacity * patch
    return out


def check_patch(size: int, corner: str) -> None:
    """Refuse sizes below 1 and unknown corners.

    Raises:
        BadOption: Says which.
    """
    if size < 1:
        raise BadOption(f"size is {size}; the patch needs at least 1 pixel.")
    if corner not in CORNERS:
        raise BadOption(f"corner is {corner!r}; it must be one of {', '.join(CORNERS)}.")
