"""Causality-inspired backdoor defence (CBD)."""

from unbackdoor.defender.defences.cbd.cbd import CBD

__all__ = ["CBD"]
