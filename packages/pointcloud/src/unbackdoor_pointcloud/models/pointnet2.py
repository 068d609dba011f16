"""PointNet++ (Qi et al. 2017, arXiv 1706.02413): PointNet in balls around sampled points, level after level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor_pointcloud.geometry import ball_query, farthest_points, group, pick
from unbackdoor_pointcloud.models.layers import Head, PointMLP, SharedMLP, as_channels, widened

__all__ = ["MSG", "SMALL", "SSG", "TINY", "Level", "PointNet2", "SetAbstraction"]


@dataclass(frozen=True)
class Level:
    """One set abstraction: ``centres`` sampled points, and for each scale a radius, neighbours and widths."""

    centres: int
    radii: tuple[float, ...]
    neighbours: tuple[int, ...]
    widths: tuple[tuple[int, ...], ...]


SSG = (
    Level(512, (0.2,), (32,), ((64, 64, 128),)),
    Level(128, (0.4,), (64,), ((128, 128, 256),)),
)
"""The paper's single-scale grouping (B.1)."""

MSG = (
    Level(512, (0.1, 0.2, 0.4), (16, 32, 128), ((32, 32, 64), (64, 64, 128), (64, 96, 128))),
    Level(128, (0.2, 0.4, 0.8), (32, 64, 128), ((64, 64, 128), (128, 128, 256), (128, 128, 256))),
)
"""The paper's multi-scale grouping (B.1)."""

SMALL = (
    Level(128, (0.25,), (16,), ((32, 32, 64),)),
    Level(32, (0.5,), (16,), ((64, 64, 128),)),
)
"""For a CPU: a quarter of the centres and of the neighbours, half the widths."""

TINY = (
    Level(64, (0.3,), (12,), ((16, 16, 32),)),
    Level(16, (0.6,), (8,), ((32, 32, 64),)),
)
"""A fifth of the time of `SMALL`, for clouds of some 256 points."""


class SetAbstraction(nn.Module):
    """Sample centres, look at the ball around each, and pool it.

    Args:
        channels: Of the features that come in, without the three coordinates.
        level: What to do.
    """

    def __init__(self, channels: int, level: Level) -> None:
        """Build one shared MLP for each scale."""
        super().__init__()
        self.level = level
        self.mlps = nn.ModuleList(SharedMLP(channels + 3, widths) for widths in level.widths)
        self.channels = sum(widths[-1] for widths in level.widths)

    def forward(self, points: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Points ``(batch, 3, n)`` and features ``(batch, channels, n)`` to those of the centres."""
        centres = pick(points, farthest_points(points, min(self.level.centres, points.shape[2])))
        pooled = []
        for mlp, radius, count in zip(self.mlps, self.level.radii, self.level.neighbours, strict=True):
            index = ball_query(points, centres, radius, count)
            seen = group(points, index) - centres.unsqueeze(3)
            if features is not None:
                seen = torch.cat([seen, group(features, index)], dim=1)
            pooled.append(mlp(seen).max(dim=3).values)  # amax shares gradients between ties: slower
        return centres, torch.cat(pooled, dim=1)


class PointNet2(nn.Module):
    """PointNet++ for classes.

    Args:
        num_classes: Number of logits.
        levels: Set abstractions; `SSG`, `MSG`, `SMALL` or your own.
        joint: Widths of the MLP over the last centres.
        hidden: Widths before the logits.
        width: Factor of all widths.
        dropout: Before the logits.
    """

    def __init__(
        self,
        num_classes: int = 40,
        levels: Sequence[Level] = SSG,
        joint: Sequence[int] = (256, 512, 1024),
        hidden: Sequence[int] = (512, 256),
        width: float = 1.0,
        dropout: float = 0.5,
    ) -> None:
        """Build the levels."""
        super().__init__()
        channels, made = 0, []
        for level in levels:
            widths = tuple(tuple(widened(one, width)) for one in level.widths)
            made.append(SetAbstraction(channels, Level(level.centres, level.radii, level.neighbours, widths)))
            channels = made[-1].channels
        self.levels = nn.ModuleList(made)
        self.joint = PointMLP(channels + 3, widened(joint, width))
        self.head = Head(widened(joint, width)[-1], widened(hidden, width), num_classes, dropout)

    def features(self, points: Tensor) -> Tensor:
        """Points ``(batch, points, 3)`` to one feature for each cloud, ``(batch, channels)``."""
        places, features = as_channels(points), None
        for level in self.levels:
            places, features = level(places, features)
        seen = places if features is None else torch.cat([places, features], dim=1)
        pooled: Tensor = self.joint(seen).amax(dim=2)
        return pooled

    def forward(self, points: Tensor) -> Tensor:
        """Points ``(batch, points, 3)`` to logits ``(batch, num_classes)``."""
        logits: Tensor = self.head(self.features(points))
        return logits
