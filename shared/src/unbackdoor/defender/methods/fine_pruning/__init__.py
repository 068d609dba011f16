"""Fine-pruning."""

from unbackdoor.defender.methods.fine_pruning.fine_pruning import FinePruning

__all__ = ["FinePruning"]
