"""Two-stage backdoor defence (TSBD)."""

from unbackdoor.defender.methods.tsbd.tsbd import TSBD

__all__ = ["TSBD"]
