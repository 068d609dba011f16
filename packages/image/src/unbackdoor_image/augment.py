"""Random shifts and flips as tensor operations on a whole batch, shared with other tasks of pixels."""

from __future__ import annotations

from unbackdoor_pixels import random_geometry, shift_and_flip

__all__ = ["random_geometry", "shift_and_flip"]
