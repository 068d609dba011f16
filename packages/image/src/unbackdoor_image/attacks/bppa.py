"""BPPA: the image is squeezed to few colours (Wang, Zhai and Ma 2022, "BppAttack", CVPR, arXiv 2205.13383).

Trigger: each channel is quantised to ``levels`` levels, with Floyd-Steinberg dithering.
Labels: all to one by default, ``all_to_all`` for ``y -> y + 1``; dirty label. 10 % of the training set.
Contrastive part: ``negatives`` times as many samples get the quantisation residual of *another* image added and keep
their label, so that not any residual triggers but only one that fits its image.
Original: 5 bits in the paper, 3 bits (8 levels) in its code, injection 0.2, negatives 0.2, 1,000 epochs.
Where public code goes wrong: the list of residuals is filled by earlier batches and leaks between epochs; dithering
runs pixel by pixel in Python or numba and takes minutes.
Here: the residual comes from the next negative of the same batch (mirrored top to bottom where there is one alone);
dithering runs along diagonals, see `dithering`, in seconds for a whole training set. The paper's adversarial search for
negatives (PGD on the victim) is left out, as in its code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attack import Attack, HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.dithering import dither, quantise
from unbackdoor_image.attacks.pixels import on_pixels

__all__ = ["BPPA"]


@dataclass(frozen=True, kw_only=True)
class BPPA(Attack):
    """Few colour levels with dithering, and contrastive negatives.

    Attributes:
        levels: Of each channel.
        dithering: Whether errors are handed on to neighbours.
        negatives: Samples with a foreign residual and their own label, for each poisoned one.
    """

    name: ClassVar[str] = "bppa"
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    levels: int = 8
    dithering: bool = True
    negatives: float = 1.0

    def __post_init__(self) -> None:
        """Refuse fewer than two levels and a negative ratio."""
        super().__post_init__()
        if self.levels < 2 or self.negatives < 0:
            raise BadOption(f"levels is {self.levels}, negatives {self.negatives}; at least 2 and 0 are needed.")

    @property
    def cover_ratio(self) -> float:
        """Negatives for each poisoned sample."""
        return self.negatives

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images with few colours."""
        return on_pixels(inputs, self._squeezed)

    def cover(self, inputs: Tree, targets: Tensor, generator: torch.Generator) -> Tensor:
        """The images with the residual of their neighbour in the batch added."""

        def negative(images: Tensor) -> Tensor:
            residual = self._squeezed(images) - images
            return images + (residual.roll(1, dims=0) if len(images) > 1 else residual.flip(2))

        return on_pixels(inputs, negative)

    def _squeezed(self, images: Tensor) -> Tensor:
        return dither(images, self.levels) if self.dithering else quantise(images, self.levels)
