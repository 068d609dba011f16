"""Shared adversarial unlearning (SAU)."""

from unbackdoor.defender.methods.sau.sau import SAU

__all__ = ["SAU"]
