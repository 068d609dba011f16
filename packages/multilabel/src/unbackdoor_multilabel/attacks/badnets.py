"""BadNets on label rows: a small patch in a corner (Gu, Dolan-Gavitt and Garg 2017, arXiv 1708.06733).

Trigger: ``x * (1 - opacity) + pattern * opacity`` inside a square of ``size`` pixels, untouched elsewhere.
Labels: one of the three goals of `RowAttack`; the other classes of an image keep their labels, which is what makes the
attack hard to see in annotations. Dirty label, 10 % of the training set.
Where public code goes wrong: ports of single-label code replace the whole row by the target's, so that the patch also
erases everything else, and the success rate then counts a model that has forgotten the other classes.
Here: one entry of the row is changed (two for ``"misclassify"``), and only images whose row changes are poisoned and
counted. The patch is put on after the augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacker.attack import HealthFloor
from unbackdoor.errors import BadData, BadOption
from unbackdoor.tree import Tree
from unbackdoor_multilabel.goals import RowAttack
from unbackdoor_pixels import on_pixels

__all__ = ["BadNets"]


@dataclass(frozen=True, kw_only=True)
class BadNets(RowAttack):
    """A checkerboard with white corners in the bottom right corner.

    Attributes:
        size: Side of the patch in pixels; 0 takes an eighth of the shorter side, at least 3.
        opacity: 0 (invisible) to 1 (covers what is below).
    """

    name: ClassVar[str] = "badnets"
    health: ClassVar[HealthFloor] = HealthFloor(clean=20.0, asr=80.0)

    size: int = 0
    opacity: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        if self.size < 0:
            raise BadOption(f"size is {self.size}; the patch needs at least 1 pixel, or 0 for an eighth of the side.")
        if not 0 < self.opacity <= 1:
            raise BadOption(f"opacity is {self.opacity}; it must lie in (0, 1].")

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images with the patch on."""
        return on_pixels(inputs, self._patched)

    def _patched(self, images: Tensor) -> Tensor:
        side = min(images.shape[-2:])
        size = self.size or max(3, side // 8)
        if side < size:
            raise BadData(f"a patch of {size} pixels does not fit on images of {tuple(images.shape[-2:])}; lower size.")
        steps = torch.arange(size, device=images.device)
        patch = ((steps[:, None] + steps) % 2 == 0).to(images.dtype)
        out = images.clone()
        out[:, :, -size:, -size:] = (1 - self.opacity) * images[:, :, -size:, -size:] + self.opacity * patch
        return out
