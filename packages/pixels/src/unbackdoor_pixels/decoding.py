"""Image files to one resident ``uint8`` tensor, decoded by a pool of threads."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unbackdoor.errors import BadData, BadOption
from unbackdoor.files.class_names import listed
from unbackdoor.files.reading import check_bytes, limits, reading, shown
from unbackdoor_pixels.opening import ENDINGS, open_image

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ENDINGS", "FITS", "Decoded", "check_size", "decode", "fitted", "open_image"]

FITS = ("stretch", "crop")


@dataclass(frozen=True)
class Decoded:
    """Images of one size.

    Attributes:
        pixels: ``uint8`` of shape ``(n, channels, height, width)``.
        notices: What the user should know of them, a sentence each.
    """

    pixels: Tensor
    notices: tuple[str, ...] = ()


def decode(
    sources: Sequence[bytes | Path],
    *,
    names: Sequence[str] | None = None,
    size: int | None = None,
    fit: str = "stretch",
    channels: int = 3,
    shrink: bool = False,
) -> Decoded:
    """Decode all images by a pool of threads.

    Args:
        sources: Contents of image files, or their paths.
        names: How to call each in a message.
        size: Side in pixels of the square result; None asks that all images have one size already.
        fit: ``"stretch"`` resizes the whole image; ``"crop"`` resizes the shorter side and cuts out the centre.
        channels: 3 for RGB, 1 for grey.
        shrink: Whether a JPEG may be decoded at a fraction of its size, which is faster and a little less sharp.

    Raises:
        BadData: There is no image, one cannot be read, or sizes differ and ``size`` is None.
        BadOption: ``size``, ``fit`` or ``channels`` is not allowed.
        TooLarge: An image, or all of them together, exceed the limits.
    """
    _check_look(size, fit, channels)
    if not sources:
        raise BadData("there are no images; check the path.")
    allowed = limits().pixels
    animated: set[str] = set()
    turned: set[str] = set()

    def called(place: int) -> str:
        source = sources[place]
        return names[place] if names is not None else f"image {place}" if isinstance(source, bytes) else str(source)

    def read(place: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        name = called(place)
        side = size if shrink and size is not None else 0
        image = open_image(sources[place], name=name, channels=channels, pixels=allowed, shrink=side)
        for told, group in (("animated", animated), ("turned", turned)):
            if image.info[told]:
                group.add(name)
        return fitted(image, size, fit)

    first = read(0)
    check_bytes(f"the pixels of all {len(sources):,} images", len(sources) * first.nbytes)
    with reading("the images", "give fewer or smaller images"):
        out = np.empty((len(sources), *first.shape), dtype=np.uint8)

    def fill(start: int) -> None:
        for place in range(start, min(start + 64, len(sources))):
            pixels = read(place)
            if pixels.shape != first.shape:
                one, other = (f"{side.shape[1]} x {side.shape[0]}" for side in (first, pixels))
                raise BadData(
                    f"images differ in size ({one} in {shown(called(0))}, {other} in {shown(called(place))}); give "
                    "size=... to bring them to one."
                )
            out[place] = pixels

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for _ in pool.map(fill, range(0, len(sources), 64)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a hundred thousand more need not be decoded to say so
            raise
    pixels = torch.from_numpy(out).reshape(*out.shape[:3], channels).permute(0, 3, 1, 2).contiguous()
    return Decoded(pixels, _notices(animated, turned))


def _check_look(size: int | None, fit: str, channels: int) -> None:
    if fit not in FITS:
        raise BadOption(f"fit is {fit!r}; it must be one of {', '.join(FITS)}.")
    if channels not in (1, 3):
        raise BadOption(f"channels is {channels}; images are read as RGB (3) or grey (1).")
    check_size(size)


def check_size(size: int | None) -> None:
    """Refuse a side in pixels that is no whole number, not positive, or beyond the limit of pixels.

    Raises:
        BadOption: It is.
    """
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size * size > limits().pixels:
        raise BadOption(
            f"size is {size!r}; the side in pixels must be a whole number of at least 1, and its square within the "
            f"limit 'pixels' ({limits().pixels:,})."
        )


def fitted(image: Image, size: int | None, fit: str = "stretch") -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of an image of `open_image`, ``(height, width)`` or ``(height, width, 3)``.

    Args:
        image: RGB or grey.
        size: Side in pixels of a square; None keeps the image's own.
        fit: See `decode`.
    """
    from PIL import Image, ImageOps

    if size is not None and image.size != (size, size):
        if fit == "crop":
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        else:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _notices(animated: Collection[str], turned: Collection[str]) -> tuple[str, ...]:
    found = []
    if animated:
        found.append(f"Of files with several pictures the first was read: {listed(sorted(animated))}.")
    if turned:
        found.append(f"Turned upright, as the orientation in their EXIF data says: {listed(sorted(turned))}.")
    return tuple(found)
