"""Clusters and small turns that a sound model overlooks: what is done to clouds that a model is tuned on.

Two families, both known as corruptions and augmentations of clouds (ModelNet-C, Ren et al. 2022, arXiv 2202.03377, has
added clusters and rotations): some points are taken out and put back as one cluster somewhere, a ball, a shell, a
sheet or a rod; and the whole cloud is turned and sheared a little. Neither is made after any attack: places, sizes,
forms, numbers of points, axes and angles are all drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unbackdoor_pointcloud.augment import rotate, rotations

__all__ = ["Clusters", "disturbance", "put_clusters", "tilt"]

_TAKEN = (0.01, 0.1)
"""Smallest and largest share of the points that become a cluster."""
_SIZES = (0.02, 0.3)
"""Radius of a cluster, as a share of the cloud's reach."""
_FLATTEST = 0.05
"""Smallest extent along an axis, as a share of the radius: sheets and rods."""
_STEP = 0.08
"""Deviation of the step from one place to the next in a search, as a share of the reach."""
_ANGLE = 30.0
_SHEAR = 0.1


def disturbance(clouds: Tensor, generator: torch.Generator, *, rate: float = 0.6) -> Tensor:
    """Clouds of which a share holds a random cluster and as many are turned and sheared a little.

    Args:
        clouds: Float of shape ``(batch, points, 3)``; it is not written into.
        generator: Every draw comes from it.
        rate: Probability of a cluster.

    Returns:
        Clouds of the same shape, dtype and device.
    """
    return put_clusters(tilt(clouds, generator, rate), generator, rate)


@dataclass(frozen=True)
class Clusters:
    """One cluster for each of ``n`` clouds, in units of the cloud's reach.

    Attributes:
        centre: Float of shape ``(n, 3)``, within the unit ball.
        size: Radius, ``(n, 1)``.
        share: Of the points that it takes, ``(n, 1)``.
    """

    centre: Tensor
    size: Tensor
    share: Tensor

    def __len__(self) -> int:
        """``n``."""
        return len(self.centre)

    def __getitem__(self, index: Tensor) -> Clusters:
        """Some of them, by index or mask."""
        return Clusters(self.centre[index], self.size[index], self.share[index])

    @classmethod
    def drawn(cls, count: int, generator: torch.Generator) -> Clusters:
        """Anywhere within reach, of 2 to 30 % of it, with 1 to 10 % of the points."""
        centre = _directions((count,), generator) * _uniform((count, 1), generator).pow(1 / 3)
        low, high = _TAKEN
        share = low + (high - low) * _uniform((count, 1), generator)
        return cls(centre, _between(*_SIZES, (count, 1), generator), share)

    def varied(self, generator: torch.Generator) -> Clusters:
        """Others a little off, larger or smaller, denser or sparser."""
        off = _STEP * torch.randn(self.centre.shape, generator=generator, device=generator.device)
        centre = self.centre + off
        centre = centre / centre.norm(dim=1, keepdim=True).clamp(min=1)
        size = (self.size * _between(1 / 2, 2, self.size.shape, generator)).clamp(*_SIZES)
        share = (self.share * _between(1 / 2, 2, self.share.shape, generator)).clamp(*_TAKEN)
        return Clusters(centre, size, share)

    @classmethod
    def joined(cls, parts: Sequence[Clusters]) -> Clusters:
        """One after the other."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("centre", "size", "share")))


def put_clusters(clouds: Tensor, generator: torch.Generator, rate: float, clusters: Clusters | None = None) -> Tensor:
    """A share ``rate`` of the clouds with some of their points, drawn for each, moved into one cluster.

    The cluster fills a ball or covers its shell, stretched along random axes.

    Args:
        clouds: Float of shape ``(batch, points, 3)``; it is not written into.
        generator: Every draw comes from it.
        rate: Probability of a cluster.
        clusters: One for each cloud; drawn if None.
    """
    count, points = clouds.shape[:2]
    reach = clouds.detach().square().sum(dim=2).amax(dim=1).sqrt().view(count, 1, 1)
    filled = torch.where(_chance(count, generator, 0.5), _uniform((count, points, 1), generator).pow(1 / 3), 1.0)
    way = _directions((count, points), generator) * filled
    flat = _between(_FLATTEST, 1.0, (count, 1, 3), generator)
    clusters = Clusters.drawn(count, generator) if clusters is None else clusters
    form = rotate(way * flat, generator, "any") * clusters.size.unsqueeze(1)
    rank = _uniform((count, points), generator).argsort(dim=1).argsort(dim=1)
    moved = (rank < (clusters.share * points).round().clamp(min=1)) & _chance(count, generator, rate).flatten(1)
    put = (form + clusters.centre.unsqueeze(1)).to(clouds) * reach
    return torch.where(moved.unsqueeze(2).to(clouds.device), put, clouds)


def tilt(clouds: Tensor, generator: torch.Generator, rate: float) -> Tensor:
    """A share ``rate`` of the clouds turned about any axis by up to 30 degrees, and sheared."""
    count = len(clouds)
    angle = math.radians(_ANGLE) * _uniform((count,), generator)
    turn = rotations(_directions((count,), generator), angle)
    shear = _SHEAR * torch.randn(count, 3, 3, generator=generator, device=generator.device).clamp(-2, 2)
    same = torch.eye(3, device=generator.device)
    change = torch.where(_chance(count, generator, rate), turn @ (same + shear), same)
    return clouds @ change.transpose(1, 2).to(clouds)


def _directions(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Unit vectors, all directions alike, ``(*size, 3)``."""
    drawn = torch.randn(*size, 3, generator=generator, device=generator.device)
    unit: Tensor = drawn / drawn.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return unit


def _between(low: float, high: float, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Drawn evenly on a logarithmic scale."""
    drawn: Tensor = low * (high / low) ** _uniform(size, generator)
    return drawn


def _uniform(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(size, generator=generator, device=generator.device)


def _chance(count: int, generator: torch.Generator, probability: float) -> Tensor:
    return torch.rand(count, 1, 1, generator=generator, device=generator.device) < probability
