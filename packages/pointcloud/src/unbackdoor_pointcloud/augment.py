"""Random changes of clouds that keep their class, on whole batches, drawn by an explicit generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["drop_points", "jitter", "rotate", "rotations", "scale"]


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
