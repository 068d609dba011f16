"""Vanilla fine-tuning (FT)."""

from unbackdoor.defender.methods.ft.ft import FT

__all__ = ["FT"]
