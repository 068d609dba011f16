"""Anti-backdoor learning (ABL)."""

from unbackdoor.defences.abl.abl import ABL

__all__ = ["ABL"]
