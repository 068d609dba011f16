"""Random changes of clouds that keep their class, on whole batches, drawn by an explicit generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["drop_points", "jitter", "put_clusters", "rotate", "rotations", "scale", "tilt"]

_TAKEN = (0.01, 0.1)
"""Smallest and largest share of the points that become a cluster."""
_SIZES = (0.02, 0.3)
"""Radius of a cluster, as a share of the cloud's reach."""
_FLATTEST = 0.05
"""Smallest extent along an axis, as a share of the radius: sheets and rods."""
_ANGLE = 30.0
_SHEAR = 0.1


def jitter(clouds: Tensor, generator: torch.Generator, deviation: float) -> Tensor:
    """Gaussian noise on every coordinate, cut off at five deviations.

    Args:
        clouds: Float of shape ``(batch, points, 3)``.
        generator: On its own device.
        deviation: Of the noise; 0 leaves the clouds as they are.
    """
    if deviation == 0:
        return clouds
    noise = torch.randn(clouds.shape, generator=generator, device=generator.device).clamp(-5, 5)
    return clouds + deviation * noise.to(clouds)


def scale(clouds: Tensor, generator: torch.Generator, largest: float) -> Tensor:
    """Each cloud times one factor, drawn evenly from ``1 / (1 + largest)`` to ``1 + largest``."""
    if largest == 0:
        return clouds
    low, high = 1 / (1 + largest), 1 + largest
    factor = low + (high - low) * torch.rand(len(clouds), 1, 1, generator=generator, device=generator.device)
    return clouds * factor.to(clouds)


def drop_points(clouds: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Points of each cloud dropped with a chance drawn from 0 to ``share``; a point that stays takes their place.

    So the number of points stays, and networks that pool by the maximum see fewer of them.
    """
    if share == 0:
        return clouds
    count, points = clouds.shape[:2]
    chance = share * torch.rand(count, 1, generator=generator, device=generator.device)
    draw = torch.rand(count, points, generator=generator, device=generator.device)
    dropped = (draw < chance).to(clouds.device)
    stays = draw.argmax(dim=1).to(clouds.device)  # the largest draw is dropped last
    place = torch.arange(points, device=clouds.device).expand(count, points)
    place = torch.where(dropped, stays.unsqueeze(1), place)
    return clouds.gather(1, place.unsqueeze(2).expand(-1, -1, 3))


def rotate(clouds: Tensor, generator: torch.Generator, kind: str) -> Tensor:
    """Each cloud turned about the third axis (``"up"``) or in any direction (``"any"``); ``"none"`` leaves them."""
    if kind == "none":
        return clouds
    draws = torch.rand(len(clouds), 3, generator=generator, device=generator.device, dtype=torch.float64)
    angle = 2 * math.pi * draws[:, 0]
    if kind == "up":
        axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, device=draws.device).expand(len(clouds), 3)
        turn = rotations(axis, angle)
    else:
        # Shoemake's even draw of unit quaternions
        low, high = (1 - draws[:, 1]).sqrt(), draws[:, 1].sqrt()
        other = 2 * math.pi * draws[:, 2]
        turn = _of_quaternions(low * angle.sin(), low * angle.cos(), high * other.sin(), high * other.cos())
    return clouds @ turn.transpose(1, 2).to(clouds)


def put_clusters(clouds: Tensor, generator: torch.Generator) -> Tensor:
    """Each cloud with 1 to 10 % of its points moved into one cluster, anywhere within the cloud's reach.

    The cluster fills a ball or covers its shell, stretched along random axes; its radius is 2 to 30 % of the reach.
    """
    count, points = clouds.shape[:2]
    reach = clouds.detach().square().sum(dim=2).amax(dim=1).sqrt().view(count, 1, 1)
    shell = _uniform((count, 1, 1), generator) < 0.5
    filled = torch.where(shell, 1.0, _uniform((count, points, 1), generator).pow(1 / 3))
    way = _directions((count, points), generator) * filled
    flat = _between(_FLATTEST, 1.0, (count, 1, 3), generator)
    size = _between(*_SIZES, (count, 1, 1), generator)
    centre = _directions((count, 1), generator) * _uniform((count, 1, 1), generator).pow(1 / 3)
    put = (rotate(way * flat, generator, "any") * size + centre).to(clouds) * reach
    share = _TAKEN[0] + (_TAKEN[1] - _TAKEN[0]) * _uniform((count, 1), generator)
    rank = _uniform((count, points), generator).argsort(dim=1).argsort(dim=1)
    moved = rank < (share * points).round().clamp(min=1)
    return torch.where(moved.unsqueeze(2).to(clouds.device), put, clouds)


def tilt(clouds: Tensor, generator: torch.Generator) -> Tensor:
    """Each cloud turned about any axis by up to 30 degrees, and sheared."""
    count = len(clouds)
    turn = rotations(_directions((count,), generator), math.radians(_ANGLE) * _uniform((count,), generator))
    shear = _SHEAR * torch.randn(count, 3, 3, generator=generator, device=generator.device).clamp(-2, 2)
    change = turn @ (torch.eye(3, device=generator.device) + shear)
    return clouds @ change.transpose(1, 2).to(clouds)


def rotations(axes: Tensor, angles: Tensor) -> Tensor:
    """Rotation matrices, ``(n, 3, 3)``, about unit ``axes`` of shape ``(n, 3)`` by ``angles`` in radians, ``(n,)``."""
    half = angles / 2
    x, y, z = (axes * half.sin().unsqueeze(1)).unbind(1)
    return _of_quaternions(x, y, z, half.cos())


def _of_quaternions(x: Tensor, y: Tensor, z: Tensor, w: Tensor) -> Tensor:
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


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
