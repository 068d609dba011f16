"""Features carried from few points to many (Qi et al. 2017, PointNet++, Eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from unbackdoor_pointcloud.geometry.gathering import group
from unbackdoor_pointcloud.geometry.neighbours import squared_distances

__all__ = ["interpolate", "three_nearest"]


def three_nearest(points: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The three nearest known points of each point, and their shares ``1/d^2``, normalised to 1.

    Args:
        points: Float of shape ``(batch, 3, points)``.
        known: Float of shape ``(batch, 3, known)``; with fewer than three, all of them are taken.

    Returns:
        Indices int64 and weights float, both of shape ``(batch, points, 3)``. A point that coincides with a known
        one gets its feature alone, up to rounding.
    """
    apart, index = squared_distances(points, known).topk(min(3, known.shape[2]), dim=2, largest=False)
    weights = 1 / apart.clamp(min=torch.finfo(apart.dtype).eps ** 2)
    return index, weights / weights.sum(dim=2, keepdim=True)


def interpolate(features: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """``out[b, c, n] = sum_k weights[b, n, k] features[b, c, index[b, n, k]]``.

    Args:
        features: Of the known points, shape ``(batch, channels, known)``.
        index: See `three_nearest`.
        weights: See `three_nearest`.

    Returns:
        Shape ``(batch, channels, points)``.
    """
    return (group(features, index) * weights.unsqueeze(1)).sum(dim=3)
