"""Anti-backdoor learning (ABL)."""

from unbackdoor.defender.defences.abl.abl import ABL

__all__ = ["ABL"]
