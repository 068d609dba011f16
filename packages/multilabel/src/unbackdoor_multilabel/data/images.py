"""Image files to one resident ``uint8`` tensor of one size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unbackdoor_pixels.decoding import Decoded
from unbackdoor_pixels.decoding import decode as decode_images

__all__ = ["decode"]


def decode(
    sources: Sequence[bytes | Path], *, names: Sequence[str] | None = None, size: int, fit: str = "stretch"
) -> Decoded:
    """All images as RGB, see `unbackdoor_pixels.decoding.decode`; a JPEG is decoded at a fraction of its size.

    Args:
        sources: Contents of image files, or their paths.
        names: How to call each in a message.
        size: Side in pixels of the square result.
        fit: ``"stretch"`` resizes the whole image, so that no object is lost; ``"crop"`` resizes the shorter side and
            cuts out the centre.

    Raises:
        BadData: There is no image, or one cannot be read.
        BadOption: ``size`` or ``fit`` is not allowed.
    """
    return decode_images(sources, names=names, size=size, fit=fit, shrink=True)
