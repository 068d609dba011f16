"""Clusters and small turns that a sound model overlooks: what is done to clouds that a model is tuned on.

Two families, both known as corruptions and augmentations of clouds (ModelNet-C, Ren et al. 2022, arXiv 2202.03377, has
added clusters and rotations): some points are taken out and put back as one cluster somewhere, a ball, a shell, a
sheet or a rod; and the whole cloud is turned and sheared a little. Neither is made after any attack: places, sizes,
forms, numbers of points, axes and angles are all drawn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unbackdoor_pointcloud.augment import rotate, rotations

__all__ = ["disturbance", "put_clusters", "tilt"]

_TAKEN = (0.01, 0.1)
"""Smallest and largest share of the points that become a cluster."""
_SIZES = (0.02, 0.3)
"""Radius of a cluster, as a share of the cloud's reach."""
_FLATTEST = 0.05
"""Smallest extent along an axis, as a share of the radius: sheets and rods."""
_ANGLE = 30.0
_SHEAR = 0.1


def disturbance(clouds: Tensor, generator: torch.Generator, *, rate: float = 0.8) -> Tensor:
    """Clouds of which a share holds a random cluster and half as many are turned and sheared a little.

    Args:
        clouds: Float of shape ``(batch, points, 3)``; it is not written into.
        generator: Every draw comes from it.
        rate: Probability of a cluster.

    Returns:
        Clouds of the same shape, dtype and device.
    """
    return put_clusters(tilt(clouds, generator, rate / 2), generator, rate)


def put_clusters(clouds: Tensor, generator: torch.Generator, rate: float) -> Tensor:
    """A share ``rate`` of the clouds with 1 to 10 % of their points, drawn for each, moved into one cluster.

    The cluster fills a ball or covers its shell, stretched along random axes, anywhere within the cloud's reach.
    """
    count, points = clouds.shape[:2]
    reach = clouds.detach().square().sum(dim=2).amax(dim=1).sqrt().view(count, 1, 1)
    filled = torch.where(_chance(count, generator, 0.5), _uniform((count, points, 1), generator).pow(1 / 3), 1.0)
    way = _directions((count, points), generator) * filled
    flat = _between(_FLATTEST, 1.0, (count, 1, 3), generator)
    size = _between(*_SIZES, (count, 1, 1), generator)
    form = rotate(way * flat, generator, "any") * size
    centre = _directions((count, 1), generator) * _uniform((count, 1, 1), generator).pow(1 / 3)
    low, high = _TAKEN
    taken = (low + (high - low) * _uniform((count, 1), generator)) * points
    rank = _uniform((count, points), generator).argsort(dim=1).argsort(dim=1)
    moved = (rank < taken.round().clamp(min=1)) & _chance(count, generator, rate).flatten(1)
    return torch.where(moved.unsqueeze(2).to(clouds.device), (form + centre).to(clouds) * reach, clouds)


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
