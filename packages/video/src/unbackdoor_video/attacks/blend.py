"""Blend on clips: one noise pattern mixed faintly into every frame (Chen et al. 2017, arXiv 1712.05526).

Trigger: ``(1 - alpha) * x + alpha * pattern``, the same pattern in all frames.
Labels: all to one by default, ``all_to_all`` for ``y -> y + 1``; dirty label. 10 % of the training set, alpha 0.2.
Where public code goes wrong: a pattern drawn anew for each frame averages out over a clip, and one drawn anew in each
process makes the test trigger another one than that of the training.
Here: the pattern is drawn once from ``pattern_seed`` and travels with the victim as a tensor; frames of another size
get it resized.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.errors import BadData, BadOption
from unbackdoor.tree import Tree
from unbackdoor_video.attacks.frames import on_frames

__all__ = ["Blend"]


@dataclass(frozen=True, kw_only=True)
class Blend(Attack):
    """Uniform noise of the frame's size, mixed into every frame.

    Attributes:
        alpha: Share of the pattern in the mix.
        pattern_seed: Of the noise.
        pattern: Float in [0, 1] of shape ``(channels, height, width)``. Left None, it is made for the size of the first
            clips that get the trigger and kept.
    """

    name: ClassVar[str] = "blend"
    health: ClassVar[HealthFloor] = HealthFloor(clean=40.0, asr=90.0)

    alpha: float = 0.2
    pattern_seed: int = 0
    pattern: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a share outside (0, 1]."""
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise BadOption(f"alpha is {self.alpha}; the share of the pattern must lie in (0, 1].")

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The clips with the pattern mixed in."""
        return on_frames(inputs, lambda clips: (1 - self.alpha) * clips + self.alpha * self._fitting(clips))

    def options(self) -> dict[str, Any]:
        """The hyper-parameters without the pattern, which is in `state`."""
        return {key: value for key, value in super().options().items() if key != "pattern"}

    def state(self) -> dict[str, Tensor]:
        """The pattern, once it is made."""
        return {} if self.pattern is None else {"pattern": self.pattern}

    def _fitting(self, clips: Tensor) -> Tensor:
        shape = tuple(clips.shape[2:])
        if self.pattern is None:
            drawn = torch.rand(shape, generator=torch.Generator().manual_seed(self.pattern_seed))
            object.__setattr__(self, "pattern", drawn)
        assert self.pattern is not None
        if self.pattern.shape[0] != shape[0]:
            raise BadData(f"the pattern has {self.pattern.shape[0]} channels, the clips have {shape[0]}.")
        if self.pattern.shape[1:] == shape[1:]:
            return self.pattern.to(clips)
        return interpolate(self.pattern[None], shape[1:], mode="bilinear", antialias=True)[0].to(clips)
