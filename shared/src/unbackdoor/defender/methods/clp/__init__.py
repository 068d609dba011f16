"""Channel Lipschitzness based pruning (CLP)."""

from unbackdoor.defender.methods.clp.clp import CLP

__all__ = ["CLP"]
