"""Re-estimation of BatchNorm's statistics (bn-only)."""

from unbackdoor.defender.methods.bn_only.bn_only import BNOnly

__all__ = ["BNOnly"]
