"""Metrics of multi-label answers: mean average precision, CF1 and OF1.

They agree with scikit-learn's ``average_precision_score`` and ``f1_score`` (the tests compare them), keep everything
on the device until they are asked, and say what happens to classes that no sample shows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unbackdoor_multilabel.rows import hard_rows

__all__ = ["MeanAveragePrecision", "MicroF1", "PerClassF1", "average_precision"]


def average_precision(scores: Tensor, truths: Tensor) -> Tensor:
    r"""``AP_k = sum_n (R_n - R_{n-1}) P_n`` of every class over falling thresholds, without interpolation.

    Precision and recall are taken where the score changes, so that samples of one score count together, whatever
    their order. (VOC 2007 averaged over 11 recalls; figures of that kind are a little different.)

    Args:
        scores: Floats of shape ``(n, classes)``; larger means surer.
        truths: Zeros and ones of the same shape.

    Returns:
        Float64 of shape ``(classes,)``, in [0, 1]; NaN for a class that no sample shows.
    """
    out = []
    for column, truth in zip(scores.double().T, truths.double().T, strict=True):
        ordered, order = column.sort(descending=True, stable=True)
        hits = truth[order].cumsum(0)
        positives = hits[-1]
        last = torch.ones_like(ordered, dtype=torch.bool)
        last[:-1] = ordered[1:] != ordered[:-1]
        ranks = torch.arange(1, len(ordered) + 1, dtype=torch.float64, device=ordered.device)
        found, precision = hits[last], (hits / ranks)[last]
        gained = torch.diff(found, prepend=found.new_zeros(1))
        out.append((gained * precision).sum() / positives)  # 0 / 0 is NaN
    return torch.stack(out)


class _Rows:
    """What all three keep: scores and truths of every sample."""

    def __init__(self) -> None:
        """Start at no sample."""
        self._scores: list[Tensor] = []
        self._truths: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in logits and label rows, both of shape ``(batch, classes)``; no synchronisation."""
        self._scores.append(outputs.detach())
        self._truths.append(hard_rows(targets))

    def _joined(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self._scores), torch.cat(self._truths)


class MeanAveragePrecision(_Rows):
    """Mean of `average_precision` over the classes that at least one sample shows; NaN where none is shown."""

    def by_class(self) -> Tensor:
        """Average precision of every class, float64 of shape ``(classes,)``; NaN for one that no sample shows."""
        return average_precision(*self._joined())

    def compute(self) -> float:
        """The mean, 0 to 1."""
        return float(self.by_class().nanmean()) if self._scores else float("nan")


class PerClassF1(_Rows):
    """CF1: the mean over classes of F1 at a probability of 1/2, over classes that are shown or answered."""

    def compute(self) -> float:
        """The mean, 0 to 1; NaN where nothing is shown or answered."""
        if not self._scores:
            return float("nan")
        both, said, true = _counts(*self._joined())
        occurring = (said + true) > 0
        return float((2 * both[occurring] / (said + true)[occurring]).mean())


class MicroF1(_Rows):
    """OF1: F1 at a probability of 1/2 over all pairs of sample and class."""

    def compute(self) -> float:
        """``2 TP / (2 TP + FP + FN)``, 0 to 1; NaN where nothing is shown or answered."""
        if not self._scores:
            return float("nan")
        both, said, true = (part.sum() for part in _counts(*self._joined()))
        return float(2 * both / (said + true))


def _counts(scores: Tensor, truths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """True positives, answers and truths of each class, float64."""
    said, true = scores > 0, truths.bool()
    return (said & true).sum(0).double(), said.sum(0).double(), true.sum(0).double()
