"""How a trigger reaches the pixels, shared with other tasks of pixels."""

from __future__ import annotations

from unbackdoor_pixels import on_pixels

__all__ = ["on_pixels"]
