"""Vanilla fine-tuning (FT)."""

from unbackdoor.methods.ft.ft import FT

__all__ = ["FT"]
