"""Fisher information guided purification (FIP)."""

from unbackdoor.defender.methods.fip.fip import FIP

__all__ = ["FIP"]
