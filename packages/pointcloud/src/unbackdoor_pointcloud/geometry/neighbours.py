"""Who is near: distances, the nearest points, and the points within a ball."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ball_query", "nearest", "squared_distances"]


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """``out[b, m, n] = |first[b, :, m] - second[b, :, n]|^2``, by differences: exact where points coincide.

    The expansion ``|a|^2 - 2ab + |b|^2`` is faster for many channels, but its rounding moves points in and out of
    balls; it is taken above 8 channels, where only the order of neighbours matters.

    Args:
        first: Float of shape ``(batch, channels, m)``.
        second: Float of shape ``(batch, channels, n)``.
    """
    if first.shape[1] > 8:
        product = torch.einsum("bcm,bcn->bmn", first, second)
        total = first.square().sum(1).unsqueeze(2) + second.square().sum(1).unsqueeze(1) - 2 * product
        return total.clamp(min=0)
    total = torch.zeros_like(first[:, 0, :, None] - second[:, 0, None, :])
    for channel in range(first.shape[1]):
        total = total + (first[:, channel, :, None] - second[:, channel, None, :]).square()
    return total


def nearest(points: Tensor, centres: Tensor, count: int) -> Tensor:
    """The ``count`` nearest points of each centre, nearest first.

    Args:
        points: Float of shape ``(batch, channels, points)``; positions or features.
        centres: Float of shape ``(batch, channels, centres)``.
        count: At most the number of points.

    Returns:
        Indices, int64 of shape ``(batch, centres, count)``, without a graph.

    Raises:
        ValueError: There are fewer points.
    """
    if not 1 <= count <= points.shape[2]:
        raise ValueError(f"count is {count}; it must lie in 1..{points.shape[2]}, the number of points.")
    apart = squared_distances(centres.detach(), points.detach())
    return apart.topk(count, dim=2, largest=False).indices


def ball_query(points: Tensor, centres: Tensor, radius: float, count: int) -> Tensor:
    """Up to ``count`` points within ``radius`` of each centre, those with the smallest indices.

    Where a ball holds fewer, its first point fills the rest, as in PointNet++; an empty ball gives the nearest point.

    Args:
        points: Float of shape ``(batch, 3, points)``.
        centres: Float of shape ``(batch, 3, centres)``.
        radius: A point at exactly this distance is inside.
        count: Neighbours of each centre.

    Returns:
        Indices, int64 of shape ``(batch, centres, count)``, without a graph.
    """
    apart = squared_distances(centres.detach(), points.detach())
    number = points.shape[2]
    kept = min(count, number)
    place = torch.arange(number, device=points.device, dtype=torch.int32)
    # float keys: topk is slow on integers, and indices below 2^24 are exact
    keys = torch.where(apart <= radius * radius, place, number).float()
    found = keys.topk(kept, dim=2, largest=False).values.long()
    empty = found[..., :1] == number
    first = torch.where(empty, apart.argmin(dim=2, keepdim=True), found[..., :1])
    found = torch.where(found == number, first, found)
    if kept < count:
        found = torch.cat([found, first.expand(*first.shape[:2], count - kept)], dim=2)
    return found
