"""DGCNN (Wang et al. 2019, arXiv 1801.07829): edges to the nearest points, found anew in each layer's features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unbackdoor_pointcloud.geometry import group, nearest
from unbackdoor_pointcloud.models.layers import Head, PointMLP, SharedMLP, as_channels, widened

__all__ = ["DGCNN"]

_SLOPE = 0.2


class DGCNN(nn.Module):
    """DGCNN for classes.

    Args:
        num_classes: Number of logits.
        neighbours: Edges of each point.
        edges: Widths of the edge convolutions.
        joint: Width of the feature of a point.
        hidden: Widths before the logits.
        width: Factor of all widths.
        dropout: Before the logits.
    """

    def __init__(
        self,
        num_classes: int = 40,
        neighbours: int = 20,
        edges: Sequence[int] = (64, 64, 128, 256),
        joint: int = 1024,
        hidden: Sequence[int] = (512, 256),
        width: float = 1.0,
        dropout: float = 0.5,
    ) -> None:
        """Build the layers."""
        super().__init__()
        self.neighbours = neighbours
        widths = widened(edges, width)
        inputs = [3, *widths[:-1]]
        self.edges = nn.ModuleList(SharedMLP(2 * a, [b], _SLOPE) for a, b in zip(inputs, widths, strict=True))
        (last,) = widened([joint], width)
        self.joint = PointMLP(sum(widths), [last], _SLOPE)
        self.head = Head(2 * last, widened(hidden, width), num_classes, dropout, _SLOPE)

    def features(self, points: Tensor) -> Tensor:
        """Points ``(batch, points, 3)`` to one feature for each cloud, ``(batch, channels)``."""
        values, seen = as_channels(points), []
        for edge in self.edges:
            index = nearest(values, values, min(self.neighbours, values.shape[2]))
            here = values.unsqueeze(3).expand(-1, -1, -1, index.shape[2])
            values = edge(torch.cat([group(values, index) - here, here], dim=1)).amax(dim=3)
            seen.append(values)
        joint = self.joint(torch.cat(seen, dim=1))
        return torch.cat([joint.amax(dim=2), joint.mean(dim=2)], dim=1)

    def forward(self, points: Tensor) -> Tensor:
        """Points ``(batch, points, 3)`` to logits ``(batch, num_classes)``."""
        logits: Tensor = self.head(self.features(points))
        return logits
