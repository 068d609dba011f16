"""Fast Fisher information guided purification (f-FIP)."""

from unbackdoor.defender.methods.f_fip.f_fip import FastFIP

__all__ = ["FastFIP"]
