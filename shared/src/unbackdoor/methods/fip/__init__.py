"""Fisher information guided purification (FIP)."""

from unbackdoor.methods.fip.fip import FIP

__all__ = ["FIP"]
