"""Channel Lipschitzness based pruning (CLP)."""

from unbackdoor.methods.clp.clp import CLP

__all__ = ["CLP"]
