"""Fine-pruning."""

from unbackdoor.methods.fine_pruning.fine_pruning import FinePruning

__all__ = ["FinePruning"]
