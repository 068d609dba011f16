"""3DPC-BA: a cluster of backdoor points at an optimised place (Xiang et al. 2021, ICCV, arXiv 2104.05808).

Trigger: ``share`` of a cloud's points are taken out, drawn for each cloud, and a random cluster within a ball of
``radius`` is put in around one place, the same for all clouds.
The place: a network trained on clean data stands in for the victim. From ``starts`` random places, ``steps`` steps of
Adam lower the mean over clouds of the source class of
``-log p(target | x with the cluster) + closeness * d(x, place)``, with ``d`` the distance from the place to the nearest
point of the cloud; the place with the lowest value is kept.
Labels: dirty label, one source class to one target class. The success rate is that of the source class alone: other
classes neither are poisoned nor counted.
Original: 32 points of 2,048, 15 poisoned clouds, 10 starts, class 8 to 35 of ModelNet40.
Where public code goes wrong: the success rate is averaged over all classes, most of which the attack does not mean;
a fixed ball at a place set by hand is called by the same name.
Here: the network is a small PointNet, the cluster and its place lie in the victim's folder. The cluster comes after
the augmentation: scale, jitter and dropped points leave it alone. A random rotation of the augmentation
does not move it either, but then its place is no longer near the same part of the object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacker.attack import HealthFloor
from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch
from unbackdoor.tree import Tree
from unbackdoor_pointcloud.attacks.insertion import insert, share_of
from unbackdoor_pointcloud.attacks.learned import Learned, batches, train_surrogate
from unbackdoor_pointcloud.attacks.pointpba_i import check_ball
from unbackdoor_pointcloud.models.pointnet import PointNet
from unbackdoor_pointcloud.task import clouds_of

__all__ = ["BackdoorPoints"]

_JUDGES = 64
"""Clouds of the source class that choose among the starts."""


@dataclass(frozen=True, kw_only=True)
class BackdoorPoints(Learned):
    """A cluster of points at a place found with a surrogate, for clouds of one class.

    Attributes:
        rate: Share of the training set; at most the share of the source class in it.
        source_class: Class whose clouds are meant.
        share: Of a cloud's points that the cluster gets.
        radius: Of the ball that holds the cluster.
        closeness: Weight of the distance to the object.
        starts: Random places to start from.
        steps: Gradient steps from each.
        helper_steps: Training steps of the surrogate.
    """

    name: ClassVar[str] = "3dpc-ba"
    maps_all_to_all: ClassVar[bool] = False
    health: ClassVar[HealthFloor] = HealthFloor(clean=60.0, asr=80.0)

    rate: float = 0.03
    source_class: int = 1
    share: float = 0.02
    radius: float = 0.05
    closeness: float = 1.0
    starts: int = 10
    steps: int = 50
    helper_steps: int = 300

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        check_ball(self.share, self.radius)
        if self.source_class == self.target or not 0 <= self.source_class < self.num_classes:
            raise BadOption(
                f"source_class is {self.source_class}, target {self.target}; give two different classes of "
                f"0..{self.num_classes - 1}."
            )
        if self.closeness < 0 or min(self.starts, self.steps, self.helper_steps) < 1:
            raise BadOption("closeness must not be negative; starts, steps and helper_steps must be at least 1.")

    def source(self, targets: Tensor) -> Tensor:
        """Clouds of `source_class`."""
        return targets == self.source_class

    def prepare(self, data: Batch, generator: torch.Generator) -> None:
        """Train the surrogate and find the place.

        Raises:
            BadData: No cloud is of the source class.
        """
        if self.ready:
            return
        meant = data[(data.targets == self.source_class).nonzero().flatten()]
        if len(meant) == 0:
            raise BadData(f"no training cloud is of class {self.source_class}; choose another source_class.")
        net = train_surrogate(data, self.num_classes, generator, steps=self.helper_steps)
        count = share_of(meant.inputs.shape[1], self.share)
        cluster = _within_ball(count, generator).to(meant.inputs) * self.radius
        self.keep({"cluster": cluster, "place": self._place(net, meant, cluster, generator)})

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The clouds with the cluster in.

        Raises:
            BadData: The clouds have fewer points than the cluster.
        """
        clouds, cluster = clouds_of(inputs), self.tensor("cluster")
        if clouds.shape[1] < len(cluster):
            raise BadData(f"the cluster has {len(cluster)} points, the clouds {clouds.shape[1]}; lower share.")
        return insert(clouds, cluster + self.tensor("place"), generator)

    def _place(self, net: PointNet, meant: Batch, cluster: Tensor, generator: torch.Generator) -> Tensor:
        start = torch.randn(self.starts, 3, generator=generator).to(cluster)
        spots = (0.7 * start / start.norm(dim=1, keepdim=True)).requires_grad_()
        optimiser = torch.optim.Adam([spots], 0.03)
        for batch in batches(meant, 8, self.steps, generator):
            with torch.enable_grad():
                cost = self._costs(net, batch.inputs, cluster, spots, generator).sum()
            optimiser.zero_grad()
            cost.backward()
            optimiser.step()
            with torch.no_grad():  # within the unit sphere, as the clouds are
                spots /= spots.norm(dim=1, keepdim=True).clamp(min=1)
        with torch.no_grad():
            judges = next(batches(meant, _JUDGES, 1, generator)).inputs
            costs = torch.cat([self._costs(net, judges, cluster, spot, generator) for spot in spots.split(1)])
        place: Tensor = spots[costs.argmin()].detach()
        return place

    def _costs(
        self, net: PointNet, clouds: Tensor, cluster: Tensor, spots: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The objective at each of ``spots``, ``(n, 3)``, as the mean over ``clouds``: shape ``(n,)``."""
        number, count = len(spots), len(clouds)
        repeated = clouds.repeat(number, 1, 1)
        moved = (cluster + spots.unsqueeze(1)).repeat_interleave(count, dim=0)
        logs = net(insert(repeated, moved, generator).float()).log_softmax(dim=1)[:, self.target]
        apart = (clouds.unsqueeze(0) - spots.view(number, 1, 1, 3)).square().sum(dim=3)
        near = apart.amin(dim=2).clamp(min=1e-12).sqrt()
        cost: Tensor = (self.closeness * near - logs.view(number, count)).mean(dim=1)
        return cost


def _within_ball(count: int, generator: torch.Generator) -> Tensor:
    """``count`` points drawn evenly from the unit ball."""
    ways = torch.randn(count, 3, generator=generator)
    lengths: Tensor = torch.rand(count, 1, generator=generator) ** (1 / 3)
    points: Tensor = ways / ways.norm(dim=1, keepdim=True) * lengths
    return points
