"""Feature shift tuning (FST)."""

from unbackdoor.defender.methods.fst.fst import FST

__all__ = ["FST"]
