"""Adversarial weight masking (AWM)."""

from unbackdoor.defender.methods.awm.awm import AWM

__all__ = ["AWM"]
