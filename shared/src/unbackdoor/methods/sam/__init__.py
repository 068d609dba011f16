"""Sharpness-aware fine-tuning (SAM)."""

from unbackdoor.methods.sam.sam import SAM

__all__ = ["SAM"]
