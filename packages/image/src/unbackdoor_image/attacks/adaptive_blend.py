"""Adaptive Blend: trained with pieces of the pattern, used with all of it (Qi et al. 2023, ICLR, arXiv 2205.13613).

Trigger: ``(1 - alpha) x + alpha pattern`` at test time. In training each poisoned image carries a random half of the
``pieces`` x ``pieces`` squares of the pattern, at the weaker ``train_alpha``.
Labels: all to one by default, ``all_to_all``; dirty label. As many covers as poisoned samples carry pieces too and keep
their label, so that poisoned and clean features lie together. Poison-only.
Original: 0.3 % poison and 0.3 % covers, a Hello Kitty picture, alpha 0.15 in training and 0.2 in the test, 16 pieces.
Where public code goes wrong: covers are counted as poison in some tables, and the rate of the two is not said.
Here: `rate` counts the poisoned samples alone, 1 % by default, since 0.3 % of a small training set does not take; the
picture is that of `blend`, kept in the victim's folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from unbackdoor.attacker.attack import HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.blend import Blend
from unbackdoor_image.attacks.pixels import on_pixels

__all__ = ["AdaptiveBlend"]


@dataclass(frozen=True, kw_only=True)
class AdaptiveBlend(Blend):
    """Pieces of a picture in training, the whole in the test, and covers that keep their label.

    Attributes:
        rate: Share of poisoned samples; covers come on top.
        train_alpha: Share of the pattern in the mix, in training.
        pieces: Squares along each side.
        shown: Share of the squares that a training image carries.
        covers: Covers for each poisoned sample.
    """

    name: ClassVar[str] = "adaptive-blend"
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=60.0)

    rate: float = 0.01
    flavour: str = "picture"
    train_alpha: float = 0.15
    pieces: int = 4
    shown: float = 0.5
    covers: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        if not 0 < self.train_alpha <= 1 or not 0 < self.shown <= 1 or self.pieces < 1 or self.covers < 0:
            raise BadOption(
                f"train_alpha is {self.train_alpha}, shown {self.shown}, pieces {self.pieces}, covers {self.covers}; "
                "the first two must lie in (0, 1], pieces be at least 1 and covers at least 0."
            )

    @property
    def cover_ratio(self) -> float:
        """Covers for each poisoned sample."""
        return self.covers

    def implant(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images with a random share of the pattern's pieces."""
        source = generator or torch.Generator().manual_seed(0)

        def mix(images: Tensor) -> Tensor:
            count, shown = len(images), max(1, round(self.shown * self.pieces**2))
            ranks = torch.rand(count, self.pieces**2, generator=source).argsort(1).argsort(1)
            chosen = (ranks < shown).float().reshape(count, 1, self.pieces, self.pieces).to(images)
            share = self.train_alpha * functional.interpolate(chosen, images.shape[-2:], mode="nearest")
            return (1 - share) * images + share * self._fitting(images).to(images)

        return on_pixels(inputs, mix)

    def cover(self, inputs: Tree, targets: Tensor, generator: torch.Generator) -> Tensor:
        """As `implant`."""
        return self.implant(inputs, generator)
