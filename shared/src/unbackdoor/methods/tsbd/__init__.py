"""Two-stage backdoor defence (TSBD)."""

from unbackdoor.methods.tsbd.tsbd import TSBD

__all__ = ["TSBD"]
