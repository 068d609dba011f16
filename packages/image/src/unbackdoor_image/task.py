"""Image classification: pixels in, one class out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unbackdoor.classes import ClassTask
from unbackdoor_pixels import PixelTask, as_floats

__all__ = ["ImageTask", "as_floats"]


@dataclass(frozen=True)
class ImageTask(PixelTask, ClassTask):
    """What a purifier must know of an image classifier.

    Inputs are images of shape ``(batch, channels, height, width)``, ``uint8`` in 0..255 or floats in [0, 1]; targets
    are class indices, int64 of shape ``(batch,)``. Targets may also be probabilities of shape ``(batch, classes)``, or
    the triple ``(a, b, lambda)`` that MixUp makes: two class indices and the share of the first. The options are those
    of `unbackdoor_pixels.PixelTask`.
    """

    name: ClassVar[str] = "image"
