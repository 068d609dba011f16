"""Points put into clouds in place of others, so that the number of points stays."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["insert", "places", "share_of", "sphere_points"]


def share_of(points: int, share: float) -> int:
    """How many of ``points`` a ``share`` is, at least 1 and at most all."""
    return min(points, max(1, round(share * points)))


def sphere_points(count: int, radius: float) -> Tensor:
    """``count`` points spread evenly over a sphere about the origin (Fibonacci's lattice), float64 ``(count, 3)``."""
    step = torch.arange(count, dtype=torch.float64) + 0.5
    height = 1 - 2 * step / count
    angle = math.pi * (1 + math.sqrt(5)) * step
    ring = (1 - height.square()).sqrt()
    return radius * torch.stack([ring * angle.cos(), ring * angle.sin(), height], dim=1)


def places(clouds: int, points: int, count: int, generator: torch.Generator | None) -> Tensor:
    """For each cloud ``count`` different places, int64 ``(clouds, count)``, on the CPU; None draws from seed 0."""
    draw = generator or torch.Generator().manual_seed(0)
    chance = torch.rand(clouds, points, generator=draw, device=draw.device).cpu()
    return chance.topk(count, dim=1).indices


def insert(clouds: Tensor, cluster: Tensor, generator: torch.Generator | None) -> Tensor:
    """A copy of the clouds in which ``cluster`` takes the places of points drawn for each cloud.

    Args:
        clouds: Float of shape ``(batch, points, 3)``.
        cluster: Float of shape ``(count, 3)`` or ``(batch, count, 3)``; its graph is kept.
        generator: See `places`.
    """
    at = places(len(clouds), clouds.shape[1], cluster.shape[-2], generator).to(clouds.device)
    given = cluster.to(clouds).expand(len(clouds), -1, -1)
    return clouds.scatter(1, at.unsqueeze(2).expand(-1, -1, 3), given)
