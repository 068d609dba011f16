"""PreActResNet-18 for small images, the network of both papers' CIFAR-10 tables."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["PreActBlock", "PreActResNet18"]


class PreActBlock(nn.Module):
    """BN, ReLU, conv, BN, ReLU, conv, plus the shortcut (He et al. 2016, arXiv 1603.05027, Fig. 4e).

    Where the shape changes, the shortcut is a 1x1 convolution without BatchNorm on the pre-activated input.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        """Map ``in_channels`` to ``channels`` at 1/``stride`` of the resolution."""
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float ``(batch, in_channels, h, w)`` to ``(batch, channels, h / stride, w / stride)``."""
        h = self.bn1(x).relu()
        residual: Tensor = self.conv2(self.bn2(self.conv1(h)).relu())
        return residual + (x if self.shortcut is None else self.shortcut(h))


class PreActResNet18(nn.Module):
    """Four stages of two blocks each; a global average pool takes any input size.

    Args:
        num_classes: Number of logits.
        in_channels: 3 for colour, 1 for grey.
        width: Channels of the first stage; the others have 2, 4 and 8 times as many. 64 is the standard (11.2 M
            parameters), 16 trains 10 times faster on a CPU.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 64) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        stages = []
        before = width
        for stage in range(4):
            channels = width * 2**stage
            first = PreActBlock(before, channels, stride=1 if stage == 0 else 2)
            stages.append(nn.Sequential(first, PreActBlock(channels, channels, stride=1)))
            before = channels
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(before)
        self.fc = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, in_channels, h, w)`` to logits ``(batch, num_classes)``."""
        h = self.bn(self.stages(self.stem(x))).relu()
        logits: Tensor = self.fc(h.mean(dim=(2, 3)))
        return logits
