"""Re-estimation of BatchNorm's statistics (bn-only)."""

from unbackdoor.methods.bn_only.bn_only import BNOnly

__all__ = ["BNOnly"]
