"""MixUp of clouds, which have no order: by the shortest path between them, or by subsets of both."""

from __future__ import annotations

import importlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from unbackdoor.mixing import beta
from unbackdoor_pointcloud.geometry import squared_distances

__all__ = ["MIXTURES", "match", "mix_by_path", "mix_by_subsets", "mix_clouds"]

MIXTURES = ("path", "subset")
"""``"path"``: PointMixup; ``"subset"``: some points of each."""

_BLOCK = 128
"""Points that are matched together: the solver is cubic, and random blocks of a cloud are whole clouds, thinner."""


def mix_clouds(clouds: Tensor, generator: torch.Generator, *, mix: float, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Each cloud mixed with another one of the batch, ``lambda ~ Beta(mix, mix)`` for each.

    Args:
        clouds: Float of shape ``(batch, points, 3)``.
        generator: Draws partners, shares and subsets.
        mix: Above 0.
        kind: One of `MIXTURES`.

    Returns:
        Mixed clouds of the same form, the partners ``j`` (int64), and the shares of the first cloud (float), both of
        shape ``(batch,)``.
    """
    count = len(clouds)
    partners = torch.randperm(count, generator=generator, device=generator.device).to(clouds.device)
    shares = beta(mix, count, generator).to(clouds.device, clouds.dtype)
    if kind == "path":
        mine, theirs = _shuffled(clouds, generator), _shuffled(clouds, generator)[partners]
        return mix_by_path(mine, theirs, shares), partners, shares
    mixed, shares = mix_by_subsets(clouds, clouds[partners], shares, generator)
    return mixed, partners, shares


def mix_by_subsets(first: Tensor, second: Tensor, shares: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random ``lambda`` of the points of ``first`` and the rest from ``second`` (PointCutMix-R, arXiv 2101.01461).

    Args:
        first: Shape ``(batch, points, 3)``.
        second: Of the same shape.
        shares: ``lambda``, float of shape ``(batch,)``.
        generator: Draws which points.

    Returns:
        The mixed clouds, and the shares that the whole numbers of points come to.
    """
    count, points = first.shape[:2]
    taken = (shares * points).round().clamp(0, points)
    draw = torch.rand(count, points, generator=generator, device=generator.device).to(first.device)
    rank = draw.argsort(dim=1).argsort(dim=1)
    mine = rank < taken.unsqueeze(1)
    return torch.where(mine.unsqueeze(2), first, second), taken / points


def mix_by_path(first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    """``lambda x_i + (1 - lambda) y_phi(i)`` with the best assignment ``phi`` (PointMixup, arXiv 2008.06374, Eq. 5).

    Args:
        first: Shape ``(batch, points, 3)``.
        second: Of the same shape.
        shares: ``lambda``, float of shape ``(batch,)``.
    """
    order = match(first, second)
    met = second.gather(1, order.unsqueeze(2).expand(-1, -1, 3))
    share = shares.view(-1, 1, 1).to(first)
    return share * first + (1 - share) * met


def match(first: Tensor, second: Tensor) -> Tensor:
    """The assignment of points with the smallest sum of distances, by SciPy's solver on the CPU.

    The solver is cubic in the number of points, so more than 128 are matched in blocks of as many, each the best
    possible; the order of points should then be random. Pairs of clouds are shared out to all cores.

    Args:
        first: Shape ``(batch, points, 3)``.
        second: Of the same shape.

    Returns:
        ``phi``: point ``i`` of ``first`` goes with point ``phi[b, i]`` of ``second``; int64 ``(batch, points)``.
    """
    solve = importlib.import_module("scipy.optimize").linear_sum_assignment
    parts, start = [], 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the solver releases Python's lock
        for mine, theirs in zip(first.split(_BLOCK, dim=1), second.split(_BLOCK, dim=1), strict=True):
            cost = squared_distances(mine.transpose(1, 2), theirs.transpose(1, 2)).sqrt().detach().cpu().numpy()
            parts.append(torch.from_numpy(np.stack([found[1] for found in pool.map(solve, cost)])) + start)
            start += mine.shape[1]
    return torch.cat(parts, dim=1).long().to(first.device)


def _shuffled(clouds: Tensor, generator: torch.Generator) -> Tensor:
    """The same clouds, their points in a random order of each."""
    count, points = clouds.shape[:2]
    order = torch.rand(count, points, generator=generator, device=generator.device).argsort(dim=1).to(clouds.device)
    return clouds.gather(1, order.unsqueeze(2).expand(-1, -1, 3))
