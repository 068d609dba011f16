"""WideResNet-16-1, the small network of the distillation defences (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

from __future__ import annotations

from torch import Tensor, nn

from unbackdoor_image.models.preact_resnet import PreActBlock

__all__ = ["WideResNet"]


class WideResNet(nn.Module):
    """Three stages of ``(depth - 4) / 6`` pre-activation blocks with 16, 32 and 64 times ``widen`` channels."""

    def __init__(self, num_classes: int = 10, in_channels: int = 3, depth: int = 16, widen: int = 1) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        blocks = (depth - 4) // 6
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        stages = []
        before = 16
        for stage in range(3):
            channels = 16 * widen * 2**stage
            layers = [PreActBlock(before, channels, stride=1 if stage == 0 else 2)]
            layers += [PreActBlock(channels, channels, stride=1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*layers))
            before = channels
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(before)
        self.fc = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, in_channels, h, w)`` to logits ``(batch, num_classes)``."""
        h = self.bn(self.stages(self.stem(x))).relu()
        logits: Tensor = self.fc(h.mean(dim=(2, 3)))
        return logits
