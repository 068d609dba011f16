"""Reconstructive neuron pruning (RNP)."""

from unbackdoor.methods.rnp.rnp import RNP

__all__ = ["RNP"]
