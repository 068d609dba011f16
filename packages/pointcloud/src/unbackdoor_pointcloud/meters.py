"""Metrics of classifiers whose classes differ in size."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MeanClassAccuracy"]


class MeanClassAccuracy:
    """Accuracy of each class that occurs, averaged over these classes: small classes count as much as large ones."""

    def __init__(self) -> None:
        """Start at no sample."""
        self._right = torch.zeros(0, dtype=torch.long)
        self._seen = torch.zeros(0, dtype=torch.long)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in logits of shape ``(batch, classes)`` and class indices of shape ``(batch,)``."""
        classes = outputs.shape[1]
        if len(self._seen) == 0:
            self._right = torch.zeros(classes, dtype=torch.long, device=outputs.device)
            self._seen = torch.zeros_like(self._right)
        self._seen += torch.bincount(targets, minlength=classes)
        self._right += torch.bincount(targets[outputs.argmax(dim=1) == targets], minlength=classes)

    def compute(self) -> float:
        """The mean, 0 to 1; NaN where no sample was seen."""
        occurs = self._seen > 0
        if not bool(occurs.any()):
            return float("nan")
        return float((self._right[occurs].double() / self._seen[occurs]).mean())
