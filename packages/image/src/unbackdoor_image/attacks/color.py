"""Color Backdoor: every pixel's colour is shifted by the same amount (Jiang et al. 2023, CVPR).

Trigger: ``clip(x + shift)`` with one number for each channel of the colour space; the whole image changes, no place in
it does.
Labels: all to one by default, ``all_to_all`` for ``y -> y + 1``; dirty label. Poison-only.
Original: the shift is searched for by a particle swarm that trades the attack's success for how natural images look.
Where public code goes wrong: nothing is known.
Here: the shift is given, not searched for, and lies in RGB; grey images take its mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.tree import Tree
from unbackdoor_image.attacks.pixels import on_pixels

__all__ = ["Color"]


@dataclass(frozen=True, kw_only=True)
class Color(Attack):
    """A shift of all colours.

    Attributes:
        red: Shift of the first channel, in units of the pixels' range.
        green: Of the second.
        blue: Of the third.
    """

    name: ClassVar[str] = "color"
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    red: float = 0.15
    green: float = -0.1
    blue: float = 0.1

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        shift = (self.red, self.green, self.blue)
        if not all(abs(value) <= 1 for value in shift) or shift == (0.0, 0.0, 0.0):
            raise BadOption(f"red, green and blue are {shift}; each must lie in [-1, 1], and one must not be 0.")

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images with their colours shifted."""
        return on_pixels(inputs, self._shifted)

    def _shifted(self, images: Tensor) -> Tensor:
        shift = images.new_tensor([self.red, self.green, self.blue])
        shift = shift if images.shape[1] == 3 else shift.mean().expand(images.shape[1])
        return (images + shift.view(1, -1, 1, 1)).clamp(0, 1)
