"""Pixels in [0, 1] or 0..255, and changes that keep the form that came in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unbackdoor.errors import BadData
from unbackdoor.tree import leaves

__all__ = ["as_floats", "check_clips", "check_images", "on_pixels"]


def as_floats(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels in [0, 1]: ``uint8`` images are divided by 255, floating-point ones stay as they are."""
    return images if images.is_floating_point() else images.to(dtype) / 255


def on_pixels(inputs: Any, change: Callable[[Tensor], Tensor]) -> Tensor:
    """``change(images)`` with pixels in [0, 1], clamped, in the dtype that came in.

    Args:
        inputs: Shape ``(batch, channels, height, width)``; ``uint8`` in 0..255 or floats in [0, 1].
        change: Gets floats in [0, 1] and returns floats of the same shape; it must not write into its argument.

    Returns:
        Same shape, dtype and device; ``uint8`` is rounded to the nearest level.

    Raises:
        BadData: The inputs are no images.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 4:
        given = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise BadData(f"the trigger got {given}; give images of shape (batch, channels, height, width).")
    if inputs.is_floating_point():
        return change(inputs).clamp(0, 1)
    if inputs.dtype is not torch.uint8:
        raise BadData(f"the trigger got {inputs.dtype} images; give uint8 in 0..255 or floats in [0, 1].")
    return (change(inputs.float() / 255).clamp(0, 1) * 255).round().to(torch.uint8)


def check_images(inputs: Any) -> Tensor:
    """The inputs, which must be one tensor of images ``(batch, channels, height, width)``.

    Raises:
        BadData: They are something else, or integers other than ``uint8``.
    """
    return _checked(inputs, "images", "(batch, channels, height, width)")


def check_clips(inputs: Any) -> Tensor:
    """The inputs, which must be one tensor of clips ``(batch, frames, channels, height, width)``.

    Raises:
        BadData: They are something else, or integers other than ``uint8``.
    """
    return _checked(inputs, "clips", "(batch, frames, channels, height, width)")


def _checked(inputs: Any, what: str, form: str) -> Tensor:
    if not isinstance(inputs, Tensor) or inputs.ndim != form.count(",") + 1:
        found = leaves(inputs)
        given = " and ".join(str(tuple(leaf.shape)) for leaf in found[:3]) or type(inputs).__name__
        raise BadData(f"inputs are {given}; give {what} as one tensor of shape {form}.")
    if not inputs.is_floating_point() and inputs.dtype is not torch.uint8:
        raise BadData(f"{what} are {inputs.dtype}; give uint8 in 0..255 or floats in [0, 1].")
    return inputs
