"""Fine-tuning with adaptive sharpness-aware minimisation (FT-SAM)."""

from unbackdoor.defender.methods.ft_sam.ft_sam import FTSAM

__all__ = ["FTSAM"]
