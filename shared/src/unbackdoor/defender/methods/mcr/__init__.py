"""Mode connectivity repair (MCR)."""

from unbackdoor.defender.methods.mcr.mcr import MCR

__all__ = ["MCR"]
