"""Shared MLPs: 1x1 convolutions with BatchNorm, the same for every point."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["Head", "PointMLP", "SharedMLP", "as_channels", "widened"]


class SharedMLP(nn.Sequential):
    """Convolution 1x1, BatchNorm and a rectifier for each width, over ``(batch, channels, centres, neighbours)``.

    Args:
        channels: Of the input.
        widths: Of each layer.
        slope: Of the rectifier below 0; DGCNN takes 0.2.
    """

    def __init__(self, channels: int, widths: Sequence[int], slope: float = 0.0) -> None:
        """Build the layers."""
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), _rectifier(slope)]
            channels = width
        super().__init__(*layers)


class PointMLP(nn.Sequential):
    """The same over ``(batch, channels, points)``."""

    def __init__(self, channels: int, widths: Sequence[int], slope: float = 0.0) -> None:
        """Build the layers."""
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Conv1d(channels, width, 1, bias=False), nn.BatchNorm1d(width), _rectifier(slope)]
            channels = width
        super().__init__(*layers)


class Head(nn.Sequential):
    """Linear layers with BatchNorm, rectifier and dropout, then the logits.

    Args:
        channels: Of the feature of a cloud.
        widths: Of the hidden layers.
        num_classes: Number of logits.
        dropout: Share of hidden values that training drops.
        slope: Of the rectifier below 0.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], num_classes: int, dropout: float, slope: float = 0.0
    ) -> None:
        """Build the layers."""
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(channels, width, bias=False), nn.BatchNorm1d(width), _rectifier(slope)]
            layers.append(nn.Dropout(dropout))
            channels = width
        super().__init__(*layers, nn.Linear(channels, num_classes))


def _rectifier(slope: float) -> nn.Module:
    return nn.LeakyReLU(slope) if slope else nn.ReLU()


def widened(widths: Sequence[int], width: float) -> list[int]:
    """``widths`` times ``width``, at least 4 each."""
    return [max(4, round(one * width)) for one in widths]


def as_channels(points: Tensor) -> Tensor:
    """``(batch, points, 3)`` as ``(batch, 3, points)``."""
    return points.transpose(1, 2).contiguous()
