"""Adversarial neuron pruning (ANP)."""

from unbackdoor.defender.methods.anp.anp import ANP

__all__ = ["ANP"]
