"""Images and clips out of files of arrays: which axis holds the channels, and what black and white are."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.errors import BadData, BadOption
from unbackdoor.files.reading import shown

__all__ = ["LAYOUTS", "as_images", "as_levels"]

LAYOUTS = ("channels_first", "channels_last")
_USUAL = (1, 3)
_ROUNDING = 1e-3
"""How far floats may lie beyond 0 and 1, as resizing and half precision leave them."""


def as_images(images: Tensor, path: Path, layout: str | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Images of shape ``(n, channels, height, width)``, ``uint8`` or float32 in [0, 1], and notices.

    Args:
        images: ``(n, height, width)``, ``(n, height, width, channels)`` or ``(n, channels, height, width)``.
        path: Where they come from, for messages.
        layout: One of `LAYOUTS`; None takes the axis of 1 or 3 channels, else the smaller one.

    Raises:
        BadData: They are no images, their axes are in doubt, or see `as_levels`.
        BadOption: ``layout`` is not known.
    """
    if layout not in (None, *LAYOUTS):
        raise BadOption(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}.")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and _is_last(tuple(images.shape), path, layout):
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise BadData(f"images in {path} have shape {tuple(images.shape)}; expected (n, height, width, channels).")
    return as_levels(images, path, "images")


def _is_last(shape: tuple[int, ...], path: Path, layout: str | None) -> bool:
    if layout is not None:
        return layout == "channels_last"
    first, last = shape[1] in _USUAL, shape[3] in _USUAL
    if first != last:
        return last
    if not first and shape[1] != shape[3]:
        return shape[3] < shape[1]
    raise BadData(
        f"images in {path} have shape {shape}; it is not clear whether channels come before or after height and width: "
        f"say which: {' or '.join(f'layout={name!r}' for name in LAYOUTS)}."
    )


def as_levels(values: Tensor, path: Path, what: str) -> tuple[Tensor, tuple[str, ...]]:
    """Pixels as ``uint8`` or float32 in [0, 1], and what was done to them.

    Whole numbers beyond 255 of 16 bits without a sign are divided by 257.

    Args:
        values: Batch first, of any type of number.
        path: Where they come from, for messages.
        what: ``"images"`` or ``"clips"``.

    Raises:
        BadData: There is none, or their black and white are not known: floats beyond [0, 1], NaN, other numbers.
    """
    source = f"{what} in {shown(path)}"
    if values.numel() == 0:
        raise BadData(f"{source} have shape {tuple(values.shape)} and so no pixel; give at least one sample.")
    if values.dtype is torch.bool or values.is_complex():
        kind = str(values.dtype).removeprefix("torch.")
        raise BadData(f"{source} are {kind}; save uint8 in 0..255 or floats in [0, 1].")
    if values.is_floating_point():
        return _unit(values, source), ()
    if values.dtype is torch.uint8:
        return values.contiguous(), ()
    lowest, highest = int(values.numpy().min()), int(values.numpy().max())
    if lowest >= 0 and highest <= 255:
        return values.to(torch.uint8).contiguous(), ()
    if values.dtype is torch.uint16:
        levels = torch.from_numpy((values.numpy().astype("uint32") + 128) // 257).to(torch.uint8)
        told = (
            f"The {source} are numbers of 16 bits; 0..65535 was taken for black to white, so they were divided by 257."
        )
        return levels.contiguous(), (told,)
    kind = str(values.dtype).removeprefix("torch.")
    raise BadData(f"{source} are {kind} from {lowest} to {highest}; save uint8 in 0..255 or floats in [0, 1].")


def _unit(values: Tensor, source: str) -> Tensor:
    values = values.to(torch.float32)
    finite = torch.isfinite(values.flatten(1)).all(1)
    if not bool(finite.all()):
        place = int((~finite).nonzero()[0])
        raise BadData(f"{source} hold NaN or infinite numbers, first in sample {place}; remove those samples.")
    lowest, highest = float(values.min()), float(values.max())
    if lowest >= 0 and highest <= 1:
        return values.contiguous()
    if lowest >= -_ROUNDING and highest <= 1 + _ROUNDING:
        return values.clamp(0, 1).contiguous()
    if lowest >= 0 and highest <= 255:
        advice = "if they are 0..255, save them as uint8 or divide them by 255"
    else:
        advice = "if they are normalised, save them as they were before, and give the mean and std with the task"
    raise BadData(f"{source} are floats from {lowest:.4g} to {highest:.4g}, but must lie in [0, 1]; {advice}.")
