"""Small image-to-image networks of the attacks that learn a trigger; they take images of any size."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Decoder", "Generator"]


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    # GroupNorm: an image's trigger must not depend on the other images of its batch; replicated borders: with zeros a
    # network finds the frame of the image and paints that
    conv = nn.Conv2d(before, after, 3, stride, padding=1, padding_mode="replicate")
    return nn.Sequential(conv, nn.GroupNorm(4, after), nn.ReLU())


class Generator(nn.Module):
    """An encoder, a decoder and one skip connection; ``(batch, channels, h, w)`` to ``(batch, out, h, w)``, unbounded.

    Args:
        channels: Of the images.
        out: Of the result.
        width: Channels at full resolution; a multiple of 4.
        bits: Length of a code, such as a secret; each of its numbers is shown in one cell of a square grid. 0: none.
    """

    def __init__(self, channels: int, out: int, width: int = 16, bits: int = 0) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.cells = math.isqrt(max(bits, 1) - 1) + 1
        self.first = _block(channels + (bits > 0), width)
        self.down = _block(width, 2 * width, 2)
        self.deep = _block(2 * width, 2 * width)
        self.up = _block(3 * width, width)
        self.last = nn.Conv2d(width, out, 3, padding=1, padding_mode="replicate")

    def forward(self, images: Tensor, code: Tensor | None = None) -> Tensor:
        """Images in [0, 1], and codes of -1 and 1, shape ``(batch, bits)``, where there are any."""
        seen = images * 2 - 1
        if code is not None:
            seen = torch.cat([seen, _on_grid(code, self.cells, images.shape[2:])], dim=1)
        first = self.first(seen)
        deep = self.down(first)
        wide = functional.interpolate(self.deep(deep), first.shape[2:], mode="nearest")
        out: Tensor = self.last(self.up(torch.cat([first, wide], dim=1)))
        return out


class Decoder(nn.Module):
    """Reads a code out of images, cell by cell: ``(batch, channels, h, w)`` to logits ``(batch, bits)``."""

    def __init__(self, channels: int, bits: int, width: int = 16) -> None:
        """Build the layers with PyTorch's default initialisation."""
        super().__init__()
        self.bits = bits
        self.body = nn.Sequential(_block(channels, width), _block(width, 2 * width))
        self.pool = nn.AdaptiveAvgPool2d(math.isqrt(max(bits, 1) - 1) + 1)
        self.head = nn.Conv2d(2 * width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to a logit for every bit."""
        out: Tensor = self.head(self.pool(self.body(images * 2 - 1))).flatten(1)[:, : self.bits]
        return out


def _on_grid(code: Tensor, cells: int, size: torch.Size) -> Tensor:
    """Each number of ``code`` in its cell: ``(batch, bits)`` to ``(batch, 1, h, w)``; spare cells are 0."""
    padded = functional.pad(code, (0, cells * cells - code.shape[1]))
    return functional.interpolate(padded.reshape(len(code), 1, cells, cells), size, mode="nearest")
