"""WaNet: the image is warped by a smooth fixed field (Nguyen and Tran 2021, arXiv 2102.10369).

Trigger: ``x`` sampled at ``identity + strength * field / height``, where ``field`` is a ``grid`` x ``grid`` array of
random vectors of mean absolute value 1, enlarged by bicubic interpolation and clipped to the image.
Labels: all to one by default, ``all_to_all`` for ``y -> y + 1``; dirty label. 10 % of the training set. Poison-only.
Noise mode: ``noise`` times as many samples are warped by the field plus a random vector of at most half a pixel along
each axis at each place, and keep their label, so that only this very field triggers.
Original: grid 4, strength 0.5, cross ratio 2, 1,000 epochs. At strength 0.5 and 32 pixels the mean shift is 0.17 pixels
along each axis, 0.26 in length and at most 0.58 (measured, `grid_seed` 0; over 200 seeds the means are 0.18 and 0.29):
control vectors are 0.24 pixels on average, and between them the field is smoother. A short training does not learn it,
then raise strength (the card of the victim says so).
Where public code goes wrong: the samples are drawn anew in every epoch, so that each is poisoned at some time;
all-to-all targets were computed from the wrong labels (BackdoorBench issue 18); without the saved grid the trigger is
lost.
Here: poisoned and noisy samples are drawn once, and the field is in the victim's folder.
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
from unbackdoor_image.attacks.learned import Learned
from unbackdoor_image.attacks.pixels import on_pixels

__all__ = ["WaNet"]


@dataclass(frozen=True, kw_only=True)
class WaNet(Learned):
    """A smooth warp of the whole image, with noise mode.

    Attributes:
        grid: Side of the array of control vectors.
        strength: Length of the vectors; 1 shifts by a third of a pixel along each axis on average.
        noise: Noisy samples that keep their label, for each poisoned one; 0 switches noise mode off.
        grid_seed: Of the control vectors.
    """

    name: ClassVar[str] = "wanet"
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    grid: int = 4
    strength: float = 0.5
    noise: float = 2.0
    grid_seed: int = 0

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow, and make the control vectors."""
        super().__post_init__()
        if self.grid < 2 or not self.strength > 0 or self.noise < 0:
            raise BadOption(
                f"grid is {self.grid}, strength {self.strength}, noise {self.noise}; they must be at least 2, above 0 "
                "and at least 0."
            )
        if self.learned is None:
            generator = torch.Generator().manual_seed(self.grid_seed)
            field = torch.rand(1, 2, self.grid, self.grid, generator=generator) * 2 - 1
            self.keep({"field": field / field.abs().mean()})

    @property
    def cover_ratio(self) -> float:
        """Noisy samples for each poisoned one."""
        return self.noise

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The warped images."""
        return on_pixels(inputs, lambda images: _sample(images, self._places(images)))

    def cover(self, inputs: Tree, targets: Tensor, generator: torch.Generator) -> Tensor:
        """The images warped by the field with noise on it."""

        def warp(images: Tensor) -> Tensor:
            height, width = images.shape[-2:]
            noise = torch.rand(len(images), height, width, 2, generator=generator).to(images) * 2 - 1
            return _sample(images, (self._places(images) + noise / height).clamp(-1, 1))

        return on_pixels(inputs, warp)

    def _places(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        field = self.tensors()["field"].to(images)
        smooth = functional.interpolate(field, (height, width), mode="bicubic", align_corners=True)
        rows = torch.linspace(-1, 1, height, device=images.device, dtype=images.dtype)
        columns = torch.linspace(-1, 1, width, device=images.device, dtype=images.dtype)
        identity = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], dim=-1)
        return (identity[None] + self.strength * smooth.permute(0, 2, 3, 1) / height).clamp(-1, 1)


def _sample(images: Tensor, places: Tensor) -> Tensor:
    return functional.grid_sample(images, places.expand(len(images), -1, -1, -1), align_corners=True)
