"""Self-distillation fine-tuning on strongly augmented samples (SDFT)."""

from unbackdoor.defender.methods.sdft.sdft import SDFT

__all__ = ["SDFT"]
