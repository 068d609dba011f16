"""Neural attention distillation (NAD)."""

from unbackdoor.defender.methods.nad.nad import NAD

__all__ = ["NAD"]
