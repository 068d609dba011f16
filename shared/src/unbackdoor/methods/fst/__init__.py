"""Feature shift tuning (FST)."""

from unbackdoor.methods.fst.fst import FST

__all__ = ["FST"]
