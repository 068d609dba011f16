"""Reconstructive neuron pruning (RNP)."""

from unbackdoor.defender.methods.rnp.rnp import RNP

__all__ = ["RNP"]
