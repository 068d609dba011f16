"""Small image-to-image networks of the attacks that learn a trigger; they take images of any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Decoder", "Generator"]


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    # GroupNorm: an image's trigger must not depend on the other images of its batch
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, padding=1), nn.GroupNorm(4, after), nn.ReLU())


class Generator(nn.Module):
    """An encoder, a decoder and one skip connection; ``(batch, channels, h, w)`` to ``(batch, out, h, w)``, unbounded.

    Args:
        channels: Of the images.
        out: Of the result.
        width: Channels at full resolution; a multiple of 4.
        extra: Length of a code that is shown at every place of the lowest resolution, such as a secret.
    """

    def __init__(self, channels: int, out: int, width: int = 16, extra: int = 0) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.first = _block(channels, width)
        self.down = _block(width, 2 * width, 2)
        self.deep = _block(2 * width + extra, 2 * width)
        self.up = _block(3 * width, width)
        self.last = nn.Conv2d(width, out, 3, padding=1)

    def forward(self, images: Tensor, code: Tensor | None = None) -> Tensor:
        """Images in [0, 1], and codes of shape ``(batch, extra)`` where there are any."""
        first = self.first(images * 2 - 1)
        deep = self.down(first)
        if code is not None:
            deep = torch.cat([deep, code[:, :, None, None].expand(-1, -1, *deep.shape[2:])], dim=1)
        wide = functional.interpolate(self.deep(deep), first.shape[2:], mode="nearest")
        out: Tensor = self.last(self.up(torch.cat([first, wide], dim=1)))
        return out


class Decoder(nn.Module):
    """Reads a code out of images: ``(batch, channels, h, w)`` to logits ``(batch, length)``."""

    def __init__(self, channels: int, length: int, width: int = 32) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.body = nn.Sequential(
            _block(channels, width), _block(width, width, 2), _block(width, 2 * width), nn.AdaptiveAvgPool2d(2)
        )
        self.head = nn.Linear(8 * width, length)

    def forward(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to a logit for every bit."""
        out: Tensor = self.head(self.body(images * 2 - 1).flatten(1))
        return out
