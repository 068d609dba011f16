"""Adversarial weight masking (AWM)."""

from unbackdoor.methods.awm.awm import AWM

__all__ = ["AWM"]
