"""Mode connectivity repair (MCR)."""

from unbackdoor.methods.mcr.mcr import MCR

__all__ = ["MCR"]
