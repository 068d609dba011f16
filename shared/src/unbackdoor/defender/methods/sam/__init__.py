"""Sharpness-aware fine-tuning (SAM)."""

from unbackdoor.defender.methods.sam.sam import SAM

__all__ = ["SAM"]
