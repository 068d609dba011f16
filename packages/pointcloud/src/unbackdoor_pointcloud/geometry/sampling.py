"""Farthest-point sampling (Eldar et al. 1997; Qi et al. 2017, PointNet++, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from unbackdoor_pointcloud.geometry.gathering import pick

__all__ = ["farthest_points"]


def farthest_points(points: Tensor, count: int, *, start: int = 0) -> Tensor:
    """Points chosen one after the other, each the farthest from all that were chosen before it.

    The first is ``start``; of several farthest points the one with the smallest index is taken. Inside
    ``torch.compile`` the whole choice is one opaque operator, since a loop of hundreds of steps would be unrolled.

    Args:
        points: Float of shape ``(batch, 3, points)``.
        count: How many; at most the number of points.
        start: Index of the first one.

    Returns:
        Indices, int64 of shape ``(batch, count)``, without a graph.

    Raises:
        ValueError: ``count`` is not within 1 and the number of points.
    """
    if not 1 <= count <= points.shape[2]:
        raise ValueError(f"count is {count}; it must lie in 1..{points.shape[2]}, the number of points.")
    points = points.detach()
    if torch.compiler.is_compiling():
        chosen: Tensor = _opaque(points, count, start)
        return chosen
    return _choose(points, count, start)


def _choose(points: Tensor, count: int, start: int) -> Tensor:
    last = torch.full_like(points[:, 0, :1], start, dtype=torch.int64)
    chosen = [last]
    apart = torch.full_like(points[:, 0], torch.inf)
    for _ in range(count - 1):
        apart = torch.minimum(apart, (points - pick(points, last)).square().sum(dim=1))
        last = apart.argmax(dim=1, keepdim=True)
        chosen.append(last)
    return torch.cat(chosen, dim=1)


@torch.library.custom_op("unbackdoor_pointcloud::farthest_points", mutates_args=())
def _opaque(points: Tensor, count: int, start: int) -> Tensor:
    return _choose(points, count, start)


@_opaque.register_fake
def _(points: Tensor, count: int, start: int) -> Tensor:
    return points.new_empty((points.shape[0], count), dtype=torch.int64)
