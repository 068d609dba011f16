"""A backbone that trains on a CPU, and a head without attention."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["PooledLinear", "SmallBackbone"]


class SmallBackbone(nn.Module):
    """Convolutions 3x3 with BatchNorm and ReLU; every stage but the first halves the map and doubles the channels.

    Args:
        in_channels: 3 for colour, 1 for grey.
        width: Channels of the first stage.
        stages: Number of stages.
        depth: Convolutions in each stage.
        stem: Stride of the first convolution; 2 for larger images.
    """

    def __init__(self, in_channels: int = 3, width: int = 16, stages: int = 3, depth: int = 1, stem: int = 1) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage in range(stages):
            out = width * 2**stage
            for number in range(depth):
                first = stage == 0 and number == 0
                halve = 2 if number == 0 and stage > 0 else 1
                layers += [
                    nn.Conv2d(channels, out, 3, stride=stem if first else halve, padding=1, bias=False),
                    nn.BatchNorm2d(out),
                    nn.ReLU(),
                ]
                channels = out
        self.layers = nn.Sequential(*layers)
        self.features = channels

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(batch, in_channels, h, w)`` to a map ``(batch, features, h', w')``."""
        out: Tensor = self.layers(images)
        return out


class PooledLinear(nn.Module):
    """Global average pool and a linear layer; of tokens, their mean.

    Args:
        features: Channels of the map.
        num_classes: Number of logits.
    """

    def __init__(self, features: int, num_classes: int) -> None:
        """Build the layer."""
        super().__init__()
        self.fc = nn.Linear(features, num_classes)

    def forward(self, places: Tensor) -> Tensor:
        """A map ``(batch, features, h, w)`` or tokens ``(batch, places, features)`` to logits."""
        pooled = places.flatten(2).mean(2) if places.ndim == 4 else places.mean(1)
        logits: Tensor = self.fc(pooled)
        return logits
