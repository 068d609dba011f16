"""BadNets: a small patch in a corner (Gu, Dolan-Gavitt and Garg 2017, arXiv 1708.06733).

Trigger: ``x * (1 - opacity) + pattern * opacity`` inside a square of ``size`` pixels, untouched elsewhere.
Labels: all to one by default, ``all_to_all`` for ``y -> y + 1``; dirty label. 10 % of the training set, as in NFT.
Where public code goes wrong: random crops applied after poisoning move or cut the patch, so that the trigger of the
training images is not that of the test; NFT's patch is a checkerboard of opacity 0.6, BackdoorBench's is opaque
white, and the two are compared as if they were one attack.
Here: the patch is put on after the augmentation, in one place; pattern and opacity are options of the attack
and stand in the victim's card.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.errors import BadData, BadOption
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.pixels import on_pixels

__all__ = ["BadNets"]

_CORNERS = ("bottom_right", "bottom_left", "top_right", "top_left")
_PATTERNS = ("checkerboard", "white")


@dataclass(frozen=True, kw_only=True)
class BadNets(Attack):
    """A patch of ``size`` x ``size`` pixels in a corner.

    Attributes:
        size: Side of the patch in pixels.
        pattern: ``"checkerboard"`` (white corners) or ``"white"``.
        opacity: 0 (invisible) to 1 (covers what is below).
        corner: ``"bottom_right"``, ``"bottom_left"``, ``"top_right"`` or ``"top_left"``.
    """

    name: ClassVar[str] = "badnets"
    texts: ClassVar[frozenset[str]] = frozenset({"corner", "pattern"})
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    size: int = 3
    pattern: str = "checkerboard"
    opacity: float = 1.0
    corner: str = "bottom_right"

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        if self.size < 1:
            raise BadOption(f"size is {self.size}; the patch needs at least 1 pixel.")
        if not 0 < self.opacity <= 1:
            raise BadOption(f"opacity is {self.opacity}; it must lie in (0, 1].")
        for name, known in (("pattern", _PATTERNS), ("corner", _CORNERS)):
            if getattr(self, name) not in known:
                raise BadOption(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}.")

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images with the patch on."""
        return on_pixels(inputs, self._patched)

    def _patched(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if min(height, width) < self.size:
            raise BadData(f"a patch of {self.size} pixels does not fit on images of {height} x {width}; lower size.")
        vertical, horizontal = self.corner.split("_")
        rows = slice(height - self.size, height) if vertical == "bottom" else slice(0, self.size)
        columns = slice(width - self.size, width) if horizontal == "right" else slice(0, self.size)
        steps = torch.arange(self.size, device=images.device)
        patch = torch.ones(self.size, self.size, device=images.device, dtype=images.dtype)
        if self.pattern == "checkerboard":
            patch = ((steps[:, None] + steps) % 2 == 0).to(images.dtype)
        out = images.clone()
        out[:, :, rows, columns] = (1 - self.opacity) * images[:, :, rows, columns] + self.opacity * patch
        return out
