"""PointNet (Qi et al. 2017, arXiv 1612.00593): one MLP for every point, the maximum over points, T-Nets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unbackdoor_pointcloud.models.layers import Head, PointMLP, as_channels, widened

__all__ = ["PointNet", "TNet"]


class TNet(nn.Module):
    """A square matrix for each cloud, near the identity, that turns its points or their features.

    Args:
        size: Of the matrix.
        width: Factor of all hidden widths.
    """

    def __init__(self, size: int, width: float = 1.0) -> None:
        """Build the layers; the last one begins at 0, so that the matrix begins as the identity."""
        super().__init__()
        local, joint = widened((64, 128, 1024), width), widened((512, 256), width)
        self.size = size
        self.local = PointMLP(size, local)
        self.joint = Head(local[-1], joint, size * size, dropout=0.0)
        last = self.joint[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, values: Tensor) -> Tensor:
        """Values ``(batch, size, points)`` to matrices ``(batch, size, size)``."""
        flat: Tensor = self.joint(self.local(values).amax(dim=2))
        return flat.view(-1, self.size, self.size) + torch.eye(self.size, dtype=flat.dtype, device=flat.device)


class PointNet(nn.Module):
    """PointNet for classes.

    Args:
        num_classes: Number of logits.
        width: Factor of all hidden widths; 1 is the paper's.
        transforms: Whether points and features go through T-Nets.
        dropout: Before the logits.
    """

    def __init__(
        self, num_classes: int = 40, width: float = 1.0, transforms: bool = True, dropout: float = 0.3
    ) -> None:
        """Build the layers."""
        super().__init__()
        early, late = widened((64, 64), width), widened((64, 128, 1024), width)
        self.turn = TNet(3, width) if transforms else None
        self.early = PointMLP(3, early)
        self.turn_features = TNet(early[-1], width) if transforms else None
        self.late = PointMLP(early[-1], late)
        self.head = Head(late[-1], widened((512, 256), width), num_classes, dropout)

    def features(self, points: Tensor) -> Tensor:
        """Points ``(batch, points, 3)`` to one feature for each cloud, ``(batch, channels)``."""
        values = as_channels(points)
        if self.turn is not None:
            values = self.turn(values).transpose(1, 2) @ values
        values = self.early(values)
        if self.turn_features is not None:
            values = self.turn_features(values).transpose(1, 2) @ values
        pooled: Tensor = self.late(values).amax(dim=2)
        return pooled

    def forward(self, points: Tensor) -> Tensor:
        """Points ``(batch, points, 3)`` to logits ``(batch, num_classes)``."""
        logits: Tensor = self.head(self.features(points))
        return logits
