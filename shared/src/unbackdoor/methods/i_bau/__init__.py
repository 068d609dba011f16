"""Implicit backdoor adversarial unlearning (I-BAU)."""

from unbackdoor.methods.i_bau.i_bau import IBAU

__all__ = ["IBAU"]
