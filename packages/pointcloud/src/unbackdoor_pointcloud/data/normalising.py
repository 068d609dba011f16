"""Clouds of one form: about the origin, within the unit sphere, of one number of points."""

from __future__ import annotations

import torch
from torch import Tensor

from unbackdoor.errors import BadData, BadOption

__all__ = ["same_number", "unit_sphere"]


def unit_sphere(clouds: Tensor) -> Tensor:
    """Each cloud moved so that its mean is the origin, then divided by its largest distance from it.

    Args:
        clouds: Float of shape ``(..., points, 3)``.
    """
    centred = clouds - clouds.mean(dim=-2, keepdim=True)
    radius = centred.square().sum(dim=-1).amax(dim=-1).sqrt()
    return centred / radius.clamp(min=torch.finfo(clouds.dtype).tiny)[..., None, None]


def same_number(clouds: Tensor, points: int, generator: torch.Generator) -> Tensor:
    """``points`` points of each cloud, drawn without repetition, in random order.

    Args:
        clouds: Shape ``(n, given, 3)``.
        points: At most ``given``.
        generator: Draws which; where all are taken, the order stays.

    Raises:
        BadData: The clouds have fewer.
        BadOption: ``points`` is below 1.
    """
    given = clouds.shape[1]
    if points < 1:
        raise BadOption(f"points is {points}; a cloud has at least 1.")
    if points > given:
        raise BadData(f"the clouds have {given} points, fewer than the {points} asked for; lower points.")
    if points == given:
        return clouds
    order = torch.rand(len(clouds), given, generator=generator).argsort(dim=1)[:, :points]
    return clouds.gather(1, order.unsqueeze(2).expand(-1, -1, 3))
