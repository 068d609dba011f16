"""Neural attention distillation (NAD)."""

from unbackdoor.methods.nad.nad import NAD

__all__ = ["NAD"]
