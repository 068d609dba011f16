"""Causality-inspired backdoor defence (CBD)."""

from unbackdoor.defences.cbd.cbd import CBD

__all__ = ["CBD"]
