"""How a trigger reaches the pixels: one path for ``uint8`` and floating-point images of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unbackdoor.errors import BadData

__all__ = ["on_pixels"]


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
