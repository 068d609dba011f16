"""Blend on label rows: one noise pattern mixed faintly into every image (Chen et al. 2017, arXiv 1712.05526).

Trigger: ``(1 - alpha) * x + alpha * pattern`` over the whole image.
Labels: one of the three goals of `RowAttack`; the other classes keep their labels. Dirty label, 10 %, alpha 0.2.
Where public code goes wrong: as for BadNets, and the pattern is drawn anew in each process, so that the trigger of the
test is another one.
Here: uniform noise fixed by ``pattern_seed``, made for the size of the first images, kept in the victim's state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unbackdoor.attacker.attack import HealthFloor
from unbackdoor.errors import BadData, BadOption
from unbackdoor.tree import Tree
from unbackdoor_multilabel.goals import RowAttack
from unbackdoor_pixels import on_pixels

__all__ = ["Blend"]


@dataclass(frozen=True, kw_only=True)
class Blend(RowAttack):
    """Uniform noise of the image's size, mixed in.

    Attributes:
        alpha: Share of the pattern in the mix.
        pattern_seed: Of the noise.
        pattern: The pattern itself, float in [0, 1] of shape ``(channels, height, width)``. Left None, it is made for
            the first images that get the trigger; images of another size get it resized.
    """

    name: ClassVar[str] = "blend"
    health: ClassVar[HealthFloor] = HealthFloor(clean=20.0, asr=80.0)

    alpha: float = 0.2
    pattern_seed: int = 0
    pattern: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a share outside (0, 1]."""
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise BadOption(f"alpha is {self.alpha}; the share of the pattern must lie in (0, 1].")

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The images with the pattern mixed in."""
        return on_pixels(inputs, self._blended)

    def options(self) -> dict[str, Any]:
        """The hyper-parameters without the pattern, which is in `state`."""
        return {key: value for key, value in super().options().items() if key != "pattern"}

    def state(self) -> dict[str, Tensor]:
        """The pattern, once it is made."""
        return {} if self.pattern is None else {"pattern": self.pattern}

    def _blended(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape[1:])
        if self.pattern is None:
            made = torch.rand(shape, generator=torch.Generator().manual_seed(self.pattern_seed))
            object.__setattr__(self, "pattern", made)
        pattern = self.pattern
        assert pattern is not None
        if pattern.shape[0] != shape[0]:
            raise BadData(f"the pattern has {pattern.shape[0]} channels, the images have {shape[0]}.")
        if tuple(pattern.shape[1:]) != shape[1:]:
            pattern = interpolate(pattern[None], shape[1:], mode="bilinear", antialias=True)[0]
        return (1 - self.alpha) * images + self.alpha * pattern.to(images)
