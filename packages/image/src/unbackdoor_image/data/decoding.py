"""Image files to one resident ``uint8`` tensor, decoded by a pool of threads."""

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

__all__ = ["FITS", "decode"]

FITS = ("stretch", "crop")


def decode(
    sources: Sequence[bytes | Path], *, size: int | None = None, fit: str = "stretch", channels: int = 3
) -> Tensor:
    """Decode all images.

    Args:
        sources: Contents of image files, or their paths.
        size: Side in pixels of the square result; None asks that all images have one size already.
        fit: ``"stretch"`` resizes the whole image; ``"crop"`` resizes the shorter side and cuts out the centre.
        channels: 3 for RGB, 1 for grey.

    Returns:
        ``uint8`` of shape ``(n, channels, height, width)``.

    Raises:
        BadData: There is no image, one cannot be read, or sizes differ and ``size`` is None.
        BadOption: ``size``, ``fit`` or ``channels`` is not allowed.
    """
    if fit not in FITS:
        raise BadOption(f"fit is {fit!r}; it must be one of {', '.join(FITS)}.")
    if channels not in (1, 3):
        raise BadOption(f"channels is {channels}; images are read as RGB (3) or grey (1).")
    if size is not None and size < 1:
        raise BadOption(f"size is {size}; the side in pixels must be at least 1.")
    if not sources:
        raise BadData("there are no images; check the path.")
    read = _reader(size, fit, "RGB" if channels == 3 else "L")
    first = read(sources[0])
    out = np.empty((len(sources), *first.shape), dtype=np.uint8)

    def fill(start: int) -> None:
        for place in range(start, min(start + 256, len(sources))):
            pixels = read(sources[place])
            if pixels.shape != first.shape:
                raise BadData(
                    f"images differ in size ({first.shape[1]} x {first.shape[0]} and {pixels.shape[1]} x "
                    f"{pixels.shape[0]}); give size=... to bring them to one."
                )
            out[place] = pixels

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(fill, range(0, len(sources), 256)):
            pass
    return torch.from_numpy(out).reshape(*out.shape[:3], channels).permute(0, 3, 1, 2).contiguous()


def _reader(size: int | None, fit: str, mode: str) -> Callable[[bytes | Path], Any]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    def read(source: bytes | Path) -> Any:
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                plain: Image.Image = image.convert(mode)
        except (UnidentifiedImageError, OSError) as error:
            name = "an entry" if isinstance(source, bytes) else str(source)
            raise BadData(f"{name} cannot be read as an image ({error}); remove or replace it.") from error
        if size is not None and plain.size != (size, size):
            if fit == "crop":
                plain = ImageOps.fit(plain, (size, size), Image.Resampling.BILINEAR)
            else:
                plain = plain.resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(plain)

    return read
