"""A network that trains on digits in seconds on a laptop."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["SmallCNN"]


class SmallCNN(nn.Module):
    """Three 3x3 convolutions with BatchNorm, one max-pool, an average pool to 2x2 and a linear layer.

    Args:
        num_classes: Number of logits.
        in_channels: 3 for colour, 1 for grey.
        width: Channels of the first convolution; the others have 2 and 4 times as many.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.halve = nn.MaxPool2d(2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(16 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, in_channels, h, w)``, sides of at least 4, to logits ``(batch, num_classes)``."""
        h = self.bn1(self.conv1(x)).relu()
        h = self.halve(self.bn2(self.conv2(h)).relu())
        h = self.bn3(self.conv3(h)).relu()
        logits: Tensor = self.fc(self.pool(h).flatten(1))
        return logits
