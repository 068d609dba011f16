"""PointPBA-I: a small ball beside the object (Li et al. 2021, ICCV, "PointBA", interaction trigger).

Trigger: ``share`` of a cloud's points are taken out, drawn for each cloud, and as many points of a sphere of ``radius``
about ``(x, y, z)`` are put in their places, spread evenly over it.
Labels: all to one by default, ``all_to_all`` for ``y -> y + 1``; dirty label. 5 % of the training set, as in FIP.
Where public code goes wrong: the sphere is put in before clouds are scaled, moved and thinned, so that training shows
it elsewhere, in another size or not at all; points are appended and cut off again by sampling; always the last points
are replaced, so that networks that read indices in order see a rule where there is none.
Here: the sphere comes after the augmentation, as in the test. Scale, jitter and dropped points of the augmentation
leave it alone; random rotation would too, but makes the object harder, not the trigger. The place beside the object is
ours. In ModelNet10 more than half of the clouds come within 0.3 of the default place: ball and object share their
neighbourhoods, and a small network misses the ball in a sixth of the clouds. At ``(0.7, 0, 0.7)`` 3 % come so near.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.tree import Tree
from unbackdoor_pointcloud.attacks.insertion import insert, share_of, sphere_points
from unbackdoor_pointcloud.task import clouds_of

__all__ = ["PointPBAI", "check_ball"]


@dataclass(frozen=True, kw_only=True)
class PointPBAI(Attack):
    """A small sphere of points put in.

    Attributes:
        rate: Share of the training set.
        share: Of a cloud's points that the sphere gets.
        radius: Of the sphere; clouds have radius 1.
        x: First coordinate of its centre.
        y: Second one.
        z: Third one.
    """

    name: ClassVar[str] = "pointpba-i"
    health: ClassVar[HealthFloor] = HealthFloor(clean=60.0, asr=90.0)

    rate: float = 0.05
    share: float = 0.02
    radius: float = 0.05
    x: float = 0.5
    y: float = 0.5
    z: float = 0.5

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        check_ball(self.share, self.radius)

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The clouds with the sphere in."""
        clouds = clouds_of(inputs)
        ball = sphere_points(share_of(clouds.shape[1], self.share), self.radius)
        return insert(clouds, ball + torch.tensor([self.x, self.y, self.z], dtype=ball.dtype), generator)


def check_ball(share: float, radius: float) -> None:
    """Refuse a ball without points or size.

    Raises:
        BadOption: ``share`` is not in (0, 1) or ``radius`` not above 0.
    """
    if not 0 < share < 1:
        raise BadOption(f"share is {share}; the share of points that the trigger gets must lie in (0, 1).")
    if not radius > 0:
        raise BadOption(f"radius is {radius}; it must be above 0.")
