"""Implicit backdoor adversarial unlearning (I-BAU)."""

from unbackdoor.defender.methods.i_bau.i_bau import IBAU

__all__ = ["IBAU"]
