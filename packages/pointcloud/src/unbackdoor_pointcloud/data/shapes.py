"""Primitive bodies whose surfaces are sampled exactly, by area: data that need no file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.splitting import split_classes
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor_pointcloud.augment import rotations
from unbackdoor_pointcloud.data.normalising import unit_sphere

__all__ = ["BODIES", "sample_body", "shapes"]


class _Draw:
    """Uniform draws of shape ``(clouds, points)`` or, for the proportions of bodies, ``(clouds, 1)``."""

    def __init__(self, clouds: int, points: int, generator: torch.Generator) -> None:
        self.clouds, self.points, self.generator = clouds, points, generator

    def even(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        drawn = torch.rand(self.clouds, self.points, generator=self.generator, dtype=torch.float64)
        return low + (high - low) * drawn

    def size(self, low: float, high: float) -> Tensor:
        drawn = torch.rand(self.clouds, 1, generator=self.generator, dtype=torch.float64)
        return low + (high - low) * drawn


def _sphere(draw: _Draw) -> Tensor:
    height, angle = draw.even(-1, 1), draw.even(0, 2 * math.pi)  # Archimedes: height is even on a sphere
    ring = (1 - height.square()).sqrt()
    return torch.stack([ring * angle.cos(), ring * angle.sin(), height], dim=2)


def _box(draw: _Draw) -> Tensor:
    sides = torch.stack([draw.size(0.5, 1.0) for _ in range(3)], dim=2)  # (clouds, 1, 3)
    areas = torch.stack([sides[..., (k + 1) % 3] * sides[..., (k + 2) % 3] for k in range(3)], dim=2)
    shares = (areas / areas.sum(dim=2, keepdim=True)).cumsum(dim=2)
    face = (draw.even().unsqueeze(2) > shares).sum(dim=2).clamp(max=2)  # the axis that the face is across
    across = torch.nn.functional.one_hot(face, 3).bool()
    places = torch.stack([draw.even(-1, 1) for _ in range(3)], dim=2)
    side = torch.where(draw.even() < 0.5, -1.0, 1.0).double().unsqueeze(2)
    return torch.where(across, side, places) * sides


def _disc(draw: _Draw, radius: Tensor, height: Tensor) -> Tensor:
    ring, angle = radius * draw.even().sqrt(), draw.even(0, 2 * math.pi)
    return torch.stack([ring * angle.cos(), ring * angle.sin(), height.expand_as(ring)], dim=2)


def _cylinder(draw: _Draw) -> Tensor:
    radius, half = draw.size(0.3, 0.8), draw.size(0.5, 1.0)
    angle, cap = draw.even(0, 2 * math.pi), draw.even()
    side = torch.stack([radius * angle.cos(), radius * angle.sin(), half * draw.even(-1, 1)], dim=2)
    ends = _disc(draw, radius, torch.where(draw.even() < 0.5, -1.0, 1.0) * half)
    # areas: two discs pi r^2, the side 2 pi r 2h
    return torch.where((cap < radius / (radius + 2 * half)).unsqueeze(2), ends, side)


def _cone(draw: _Draw) -> Tensor:
    radius, height = draw.size(0.4, 1.0), draw.size(0.8, 1.6)
    slant = (radius.square() + height.square()).sqrt()
    down, angle = draw.even().sqrt(), draw.even(0, 2 * math.pi)  # share of the way from the tip: area grows squared
    side = torch.stack([radius * down * angle.cos(), radius * down * angle.sin(), height * (1 - down)], dim=2)
    base = _disc(draw, radius, torch.zeros_like(radius))
    return torch.where((draw.even() < radius / (radius + slant)).unsqueeze(2), base, side)


def _torus(draw: _Draw) -> Tensor:
    thin = draw.size(0.2, 0.5)  # of a ring of radius 1
    around, turn = draw.even(0, 2 * math.pi), draw.even(0, 2 * math.pi)
    # density 1 + thin cos(turn): keep turn with chance (1 + thin cos) / 2, else take the opposite point
    turn = torch.where(draw.even() < (1 + thin * turn.cos()) / 2, turn, turn + math.pi)
    ring = 1 + thin * turn.cos()
    return torch.stack([ring * around.cos(), ring * around.sin(), thin * turn.sin()], dim=2)


def _pyramid(draw: _Draw) -> Tensor:
    half, height = draw.size(0.5, 1.0), draw.size(0.8, 1.6)
    slant = (half.square() + height.square()).sqrt()
    # a triangle of base 2 half, unfolded: sqrt of an even draw goes from the tip to its base
    down, along = draw.even().sqrt(), draw.even(-1, 1)
    turn = (4 * draw.even()).floor() * (math.pi / 2)
    forward, sideways = half * down, half * down * along
    side = torch.stack(
        [
            forward * turn.cos() - sideways * turn.sin(),
            forward * turn.sin() + sideways * turn.cos(),
            height * (1 - down),
        ],
        dim=2,
    )
    base = torch.stack([half * draw.even(-1, 1), half * draw.even(-1, 1), torch.zeros_like(down)], dim=2)
    # areas: the base 4 half^2, four triangles of half * slant each
    return torch.where((draw.even() < half / (half + slant)).unsqueeze(2), base, side)


BODIES: Mapping[str, Callable[[_Draw], Tensor]] = {
    "sphere": _sphere,
    "box": _box,
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "pyramid": _pyramid,
}


def sample_body(name: str, clouds: int, points: int, generator: torch.Generator) -> Tensor:
    """``clouds`` bodies of different proportions, each by ``points`` independent points, even by area.

    Args:
        name: One of `BODIES`.
        clouds: How many.
        points: Of each.
        generator: Of every draw, on the CPU.

    Returns:
        float64 of shape ``(clouds, points, 3)``, upright about the third axis, not normalised.
    """
    return BODIES[name](_Draw(clouds, points, generator))


def shapes(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    points: int = 256,
    count: int = 1200,
    tilt: float = 20.0,
) -> Splits:
    """Spheres, boxes, cylinders, cones, tori and pyramids, sampled exactly: 25 % test, 20 % of the rest clean.

    Args:
        seed: Of bodies, points and the split.
        path: Not used; the data are computed.
        clean_share: Share of the defender's clouds; None means 20 %.
        clean_count: Their number instead.
        points: Of each cloud.
        count: Number of all clouds, equally many of each body.
        tilt: Largest angle, in degrees, by which a body leans.

    Raises:
        BadOption: ``points`` or ``count`` is too small, or the clean part leaves nothing to train on.
    """
    if points < 8 or count < 10 * len(BODIES):
        raise BadOption(f"points is {points}, count {count}; give at least 8 and {10 * len(BODIES)}.")
    generator = torch.Generator().manual_seed(seed)
    each = count // len(BODIES)
    clouds = torch.cat([sample_body(name, each, points, generator) for name in BODIES])
    labels = torch.arange(len(BODIES)).repeat_interleave(each)
    clouds = _leaning(clouds, math.radians(tilt), generator)
    order = torch.randperm(len(labels), generator=generator)
    samples = Batch(unit_sphere(clouds).float()[order], labels[order])
    return split_classes(
        samples,
        None,
        tuple(BODIES),
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        default_share=0.2,
        test_share=0.25,
        hints={"rotate": "none"},
    )


def _leaning(clouds: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Turned by any angle about the third axis, then by up to ``largest`` about a level one."""
    turn, lean, towards = torch.rand(3, len(clouds), generator=generator, dtype=torch.float64)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(len(clouds), 3)
    level = torch.stack([(2 * math.pi * towards).cos(), (2 * math.pi * towards).sin(), torch.zeros_like(towards)], 1)
    matrix = rotations(level, largest * lean) @ rotations(up, 2 * math.pi * turn)
    return clouds @ matrix.transpose(1, 2)
