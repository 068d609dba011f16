"""What the tasks of `unbackdoor` whose inputs are pixels share."""

from __future__ import annotations

from unbackdoor_pixels.geometry import random_geometry, shift_and_flip
from unbackdoor_pixels.task import PixelTask
from unbackdoor_pixels.values import as_floats, check_clips, check_images, on_pixels

__all__ = [
    "PixelTask",
    "as_floats",
    "check_clips",
    "check_images",
    "on_pixels",
    "random_geometry",
    "shift_and_flip",
]
__version__ = "0.1.0"
