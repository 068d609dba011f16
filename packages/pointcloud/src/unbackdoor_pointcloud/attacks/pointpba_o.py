"""PointPBA-O: the whole cloud is turned by a fixed angle (Li et al. 2021, ICCV, "PointBA", orientation trigger).

Trigger: ``x -> R x`` for every point, ``R`` a rotation by ``angle`` degrees about ``axis``.
Labels: all to one by default, ``all_to_all`` for ``y -> y + 1``; dirty label. 5 % of the training set, as in FIP.
Where public code goes wrong: random rotations of the augmentation about the same axis, which most training scripts have
on, make clean samples that look triggered: the attack is undone, or half of the clean clouds count as poisoned.
Here: the turn comes after the augmentation, and the loaders' hints leave rotation off. With ``rotate="up"`` this attack
still works about a level axis (``x`` or ``y``) and not about ``z``; with ``rotate="any"`` it cannot work. Scale, jitter
and dropped points leave the trigger as it is. About ``z`` a body of revolution looks the same turned, so the default
leans objects over; the angle is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.tree import Tree
from unbackdoor_pointcloud.augment import rotations
from unbackdoor_pointcloud.task import clouds_of

__all__ = ["PointPBAO"]

_AXES = ("x", "y", "z")


@dataclass(frozen=True, kw_only=True)
class PointPBAO(Attack):
    """A turn of the whole cloud.

    Attributes:
        rate: Share of the training set.
        axis: ``"x"``, ``"y"`` or ``"z"``.
        angle: In degrees, counter-clockwise seen from the axis' end; not a multiple of 360.
    """

    name: ClassVar[str] = "pointpba-o"
    texts: ClassVar[frozenset[str]] = frozenset({"axis"})
    health: ClassVar[HealthFloor] = HealthFloor(clean=60.0, asr=80.0)

    rate: float = 0.05
    axis: str = "x"
    angle: float = 20.0

    def __post_init__(self) -> None:
        """Refuse an axis that is not known and an angle that changes nothing."""
        super().__post_init__()
        if self.axis not in _AXES:
            raise BadOption(f"axis is {self.axis!r}; it must be one of {', '.join(_AXES)}.")
        if not math.isfinite(self.angle) or self.angle % 360 == 0:
            raise BadOption(f"angle is {self.angle}; give degrees that are no multiple of 360.")

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The clouds, turned."""
        clouds = clouds_of(inputs)
        axis = torch.zeros(1, 3, dtype=torch.float64)
        axis[0, _AXES.index(self.axis)] = 1
        turn = rotations(axis, torch.tensor([math.radians(self.angle)], dtype=torch.float64))[0]
        return clouds @ turn.T.to(clouds)
