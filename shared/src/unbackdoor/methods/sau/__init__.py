"""Shared adversarial unlearning (SAU)."""

from unbackdoor.methods.sau.sau import SAU

__all__ = ["SAU"]
