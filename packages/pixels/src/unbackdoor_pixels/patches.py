"""Rectangles filled with something, as things that a search may try, keep and vary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unbackdoor_pixels.contents import chance, fillings, uniform
from unbackdoor_pixels.disturbance import OPACITY, SIDES

__all__ = ["Patches"]

_STEP = 0.08
"""Deviation of the step from one place to the next in a search, as a share of the image's side."""
_KEPT = 0.5
"""Share of the variations that keep what the rectangle shows."""


@dataclass(frozen=True)
class Patches:
    """One rectangle for each of ``n`` images.

    Attributes:
        start: Upper left corner as a share of the image's height and width, ``(n, 2)``; below 0 where the border cuts.
        side: Height and width as a share of the image's, ``(n, 2)``.
        opacity: ``(n, 1, 1, 1)``, in [0, 1].
        content: What it shows, of the size of the image, in [0, 1], ``(n, channels, height, width)``.
    """

    start: Tensor
    side: Tensor
    opacity: Tensor
    content: Tensor

    def __len__(self) -> int:
        """``n``."""
        return len(self.start)

    def __getitem__(self, index: Tensor) -> Patches:
        """Some of them, by index or mask."""
        return Patches(self.start[index], self.side[index], self.opacity[index], self.content[index])

    @classmethod
    def drawn(
        cls, count: int, channels: int, height: int, width: int, generator: torch.Generator, beyond: bool
    ) -> Patches:
        """As `unbackdoor_pixels.disturbance` draws rectangles."""
        side = uniform((count, 2), generator, *SIDES)
        place = uniform((count, 2), generator)
        return cls(
            place * (1 + side) - side if beyond else place * (1 - side),
            side,
            uniform((count, 1, 1, 1), generator, *OPACITY),
            fillings((count, channels, height, width), generator),
        )

    def varied(self, generator: torch.Generator) -> Patches:
        """Others a little off, larger or smaller, of which half show in some part something else."""
        count, size = len(self), self.content.shape
        off = _STEP * torch.randn(self.start.shape, generator=generator, device=generator.device)
        side = (self.side * uniform((count, 2), generator, 0.7, 1.4)).clamp(*SIDES)
        centre = self.start + self.side / 2 + off
        opacity = (self.opacity + uniform(self.opacity.shape, generator, -0.2, 0.2)).clamp(*OPACITY)
        other = fillings((size[0], size[1], size[2], size[3]), generator)
        part, place = uniform((count, 2), generator, 0.3, 1.0) * self.side, uniform((count, 2), generator)
        inside = _rectangles(self.start + place * (self.side - part), part, *size[2:]) > 0
        inside = inside & ~chance(count, generator, _KEPT)
        return Patches(centre - side / 2, side, opacity, torch.where(inside, other, self.content))

    def covers(self) -> Tensor:
        """One inside, else zero: ``(n, 1, height, width)``; at least one pixel is inside."""
        return _rectangles(self.start, self.side, *self.content.shape[2:])

    @classmethod
    def joined(cls, parts: Sequence[Patches]) -> Patches:
        """One after the other."""
        names = ("start", "side", "opacity", "content")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _rectangles(start: Tensor, side: Tensor, height: int, width: int) -> Tensor:
    lines = []
    for axis, length in enumerate((height, width)):
        many = (side[:, axis : axis + 1] * length).round().clamp(min=1)
        first = (start[:, axis : axis + 1] * length).round().clamp(max=length - 1).maximum(1 - many)
        at = torch.arange(length, device=start.device)
        lines.append((at >= first) & (at < first + many))
    return (lines[0][:, None, :, None] & lines[1][:, None, None, :]).float()
