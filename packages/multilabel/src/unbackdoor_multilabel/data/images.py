"""Image files to one resident ``uint8`` tensor of one size."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbackdoor.errors import BadData, BadOption

__all__ = ["FITS", "decode", "fitted", "stack"]

FITS = ("stretch", "crop")


def decode(sources: Sequence[bytes | Path], *, size: int, fit: str = "stretch") -> Tensor:
    """Decode all images as RGB.

    Args:
        sources: Contents of image files, or their paths.
        size: Side in pixels of the square result.
        fit: ``"stretch"`` resizes the whole image, so that no object is lost; ``"crop"`` resizes the shorter side and
            cuts out the centre.

    Returns:
        ``uint8`` of shape ``(n, 3, size, size)``.

    Raises:
        BadData: There is no image, or one cannot be read.
        BadOption: ``size`` or ``fit`` is not allowed.
    """

    def read(place: int) -> Any:
        from PIL import Image, UnidentifiedImageError

        source = sources[place]
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return fitted(image, size, fit)
        except (UnidentifiedImageError, OSError) as error:
            name = f"image {place}" if isinstance(source, bytes) else str(source)
            raise BadData(f"{name} cannot be read ({error}); remove or replace it.") from error

    return stack(read, len(sources), size, fit)


def stack(read: Callable[[int], Any], count: int, size: int, fit: str) -> Tensor:
    """What ``read(place)`` gives for every place, read by a pool of threads.

    Args:
        read: Gives ``uint8`` of shape ``(size, size, 3)``.
        count: Number of places.
        size: See `decode`; at least 1.
        fit: One of `FITS`.

    Raises:
        BadData: ``count`` is 0.
        BadOption: ``size`` or ``fit`` is not allowed.
    """
    if fit not in FITS:
        raise BadOption(f"fit is {fit!r}; it must be one of {', '.join(FITS)}.")
    if size < 1:
        raise BadOption(f"size is {size}; the side in pixels must be at least 1.")
    if count == 0:
        raise BadData("there are no images; check the path.")
    out = np.empty((count, size, size, 3), dtype=np.uint8)

    def fill(start: int) -> None:
        for place in range(start, min(start + 64, count)):
            out[place] = read(place)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(fill, range(0, count, 64)):
            pass
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


def fitted(image: Any, size: int, fit: str) -> Any:
    """A ``PIL.Image`` as ``uint8`` RGB of shape ``(size, size, 3)``."""
    from PIL import Image, ImageOps

    image.draft("RGB", (size, size))  # lets a JPEG be decoded at a fraction of its size
    plain = image.convert("RGB")
    if fit == "crop":
        return np.asarray(ImageOps.fit(plain, (size, size), Image.Resampling.BILINEAR))
    return np.asarray(plain.resize((size, size), Image.Resampling.BILINEAR))
