"""Adversarial neuron pruning (ANP)."""

from unbackdoor.methods.anp.anp import ANP

__all__ = ["ANP"]
