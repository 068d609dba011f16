"""The asymmetric loss of multi-label training."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["asymmetric_scores"]


def asymmetric_scores(
    logits: Tensor, rows: Tensor, *, positive: float = 0.0, negative: float = 4.0, margin: float = 0.05
) -> Tensor:
    r"""Minus the asymmetric loss of each sample (Ridnik et al. 2021, arXiv 2009.14119, Eq. 4 to 7).

    ``sum_k t_k (1 - p_k)^g+ log p_k + (1 - t_k) q_k^g- log(1 - q_k)`` with ``p = sigmoid(z)`` and the shifted
    ``q = max(p - m, 0)``: easy absences, of which an image has many, hardly count. With ``positive = negative =
    margin = 0`` it is the log-likelihood of Bernoulli terms. It is linear in the labels ``t``.

    Args:
        logits: ``z``, shape ``(batch, classes)``.
        rows: ``t``, floats in [0, 1] of that shape.
        positive: ``g+``, at least 0.
        negative: ``g-``, at least 0.
        margin: ``m``, in [0, 1).

    Returns:
        Float of shape ``(batch,)``.
    """
    present = torch.nn.functional.logsigmoid(logits)
    likely = logits.sigmoid()
    shifted = (likely - margin).clamp(min=0)
    # at margin 0 the logarithm of 1 - p is taken from the logit, which is exact where p rounds to 1
    absent = torch.nn.functional.logsigmoid(-logits) if margin == 0 else torch.log1p(-shifted)
    if positive > 0:
        present = present * (1 - likely).pow(positive)
    if negative > 0:
        absent = absent * shifted.pow(negative)
    scores: Tensor = (rows * present + (1 - rows) * absent).sum(1)
    return scores
