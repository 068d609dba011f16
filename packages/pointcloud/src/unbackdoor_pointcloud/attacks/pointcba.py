"""PointCBA: clouds of the target class lose their features, then get a ball (Li et al. 2021, ICCV, "PointBA").

Trigger: the small sphere of `pointpba-i`.
Labels: clean label. Clouds of the target class are first changed so that a network trained on clean data no longer
finds their class in them (feature disentanglement), then carry the sphere; labels stay, and the test clouds carry the
sphere alone. `rate` is a share of the target class.
Feature disentanglement: for each cloud a rotation of at most ``lean`` degrees and a shift of each point of at most
``eps`` in each coordinate are found together by ``steps`` steps of Adam that lower
``cos(f(x'), f(x)) + log p(target | x')``, with ``f`` the pooled feature of the network; the best of ``starts`` random
starts is kept. A victim then learns the sphere in place of what it no longer finds.
Where public code goes wrong: changed clouds are made once against the very victim that is attacked later, or the
optimisation is left out; its success rate is low (NFT has 66 %), so a defence looks better than it is: look at
the row without a defence.
Here: the network is a small PointNet trained on the same clean data, so nothing is fetched and the victim's own weights
are not known. The change is made once, before the augmentation; the sphere comes after it. Random rotations of the
augmentation would undo part of the change, since the victim then knows turned objects; scale and jitter do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacker.attack import HealthFloor
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor.tree import Tree
from unbackdoor_pointcloud.attacks.insertion import insert, share_of, sphere_points
from unbackdoor_pointcloud.attacks.learned import Learned, train_surrogate
from unbackdoor_pointcloud.attacks.pointpba_i import check_ball
from unbackdoor_pointcloud.augment import rotations
from unbackdoor_pointcloud.models.pointnet import PointNet
from unbackdoor_pointcloud.task import clouds_of

__all__ = ["PointCBA"]

_CHUNK = 64
_WIDTH = 0.5


@dataclass(frozen=True, kw_only=True)
class PointCBA(Learned):
    """Clouds of the target class without their features, with a sphere; clean label.

    Attributes:
        rate: Share of the target class that is poisoned.
        share: Of a cloud's points that the sphere gets.
        radius: Of the sphere.
        x: First coordinate of its centre.
        y: Second one.
        z: Third one.
        lean: Largest rotation in degrees.
        eps: Largest shift of a point in each coordinate.
        steps: Steps of the optimisation.
        starts: Random starts; the best counts.
        helper_steps: Training steps of the network.
    """

    name: ClassVar[str] = "pointcba"
    clean_label: ClassVar[bool] = True
    health: ClassVar[HealthFloor] = HealthFloor(clean=60.0, asr=50.0)

    rate: float = 0.5
    share: float = 0.02
    radius: float = 0.05
    x: float = 0.5
    y: float = 0.5
    z: float = 0.5
    lean: float = 45.0
    eps: float = 0.05
    steps: int = 30
    starts: int = 2
    helper_steps: int = 300

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        check_ball(self.share, self.radius)
        if not 0 <= self.lean <= 180 or not 0 <= self.eps <= 1 or self.lean + self.eps == 0:
            raise BadOption(
                f"lean is {self.lean}, eps {self.eps}; lean must lie in [0, 180], eps in [0, 1], and not both be 0."
            )
        if min(self.steps, self.starts, self.helper_steps) < 1:
            raise BadOption("steps, starts and helper_steps must be at least 1.")

    def prepare(self, data: Batch, generator: torch.Generator) -> None:
        """Train the network on clean data."""
        if not self.ready:
            net = train_surrogate(data, self.num_classes, generator, steps=self.helper_steps, width=_WIDTH)
            self.keep(net.state_dict())

    def rework(self, inputs: Tree, targets: Tensor, generator: torch.Generator) -> Tensor:
        """The clouds without the features of their class."""
        clouds = clouds_of(inputs)
        net = self._network(clouds.device)
        parts = zip(clouds.split(_CHUNK), targets.split(_CHUNK), strict=True)
        return torch.cat([self._disentangled(net, some, labels, generator) for some, labels in parts])

    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tensor:
        """The clouds with the sphere in."""
        clouds = clouds_of(inputs)
        ball = sphere_points(share_of(clouds.shape[1], self.share), self.radius)
        return insert(clouds, ball + torch.tensor([self.x, self.y, self.z], dtype=ball.dtype), generator)

    def _network(self, device: torch.device) -> PointNet:
        net = PointNet(self.num_classes, width=_WIDTH, transforms=False, dropout=0.0)
        net.load_state_dict({name: self.tensor(name) for name in net.state_dict()})
        return net.to(device).eval().requires_grad_(False)

    def _disentangled(self, net: PointNet, given: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        clouds = given.float()
        own = net.features(clouds)
        best, lowest = clouds, torch.full((len(clouds),), torch.inf, device=clouds.device)
        for _ in range(self.starts):
            turn = torch.randn(len(clouds), 3, generator=generator).to(clouds)
            turn = (0.5 * turn / turn.norm(dim=1, keepdim=True)).requires_grad_()
            shift = (0.1 * torch.randn(clouds.shape, generator=generator).to(clouds)).requires_grad_()
            optimiser = torch.optim.Adam([turn, shift], 0.1)
            for step in range(self.steps + 1):
                with torch.enable_grad():
                    changed = self._moved(clouds, turn, shift)
                    cost = _kept(net, changed, own, labels)
                better = cost.detach() < lowest
                best = torch.where(better.view(-1, 1, 1), changed.detach(), best)
                lowest = torch.where(better, cost.detach(), lowest)
                if step < self.steps:
                    optimiser.zero_grad()
                    cost.sum().backward()
                    optimiser.step()
        return best.to(given.dtype)

    def _moved(self, clouds: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
        """``R x + eps tanh(shift)``, with an angle of ``lean tanh(|turn|)`` about the direction of ``turn``."""
        size = turn.norm(dim=1).clamp(min=1e-6)
        matrix = rotations(turn / size.unsqueeze(1), math.radians(self.lean) * size.tanh())
        return clouds @ matrix.transpose(1, 2) + self.eps * shift.tanh()


def _kept(net: PointNet, changed: Tensor, own: Tensor, labels: Tensor) -> Tensor:
    """``cos(f(x'), f(x)) + log p(label | x')`` of each cloud: how much of its class is left."""
    features = net.features(changed)
    likely: Tensor = net.head(features).log_softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
    alike = torch.nn.functional.cosine_similarity(features, own, dim=1)
    return alike + likely
