"""Accuracy without torchmetrics, whose import takes ten seconds; a test compares the two definitions."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Accuracy"]


class Accuracy:
    """Share of samples whose largest logit is that of their class (micro average over all samples)."""

    def __init__(self) -> None:
        """Start at no sample."""
        self._right = torch.zeros((), dtype=torch.long)
        self._count = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in logits of shape ``(batch, classes)`` and class indices of shape ``(batch,)``; no synchronisation."""
        self._right = self._right.to(outputs.device) + (outputs.argmax(dim=1) == targets).sum()
        self._count += len(targets)

    def compute(self) -> float:
        """The share, 0 to 1; NaN where no sample was seen."""
        return int(self._right) / self._count if self._count else float("nan")
