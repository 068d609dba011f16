"""What networks on points compute between their layers: sampling, neighbours, grouping and interpolation.

All of it is plain batched PyTorch, for any device; ``torch.compile`` and ``torch.func.vmap`` pass through.
"""

from __future__ import annotations

from unbackdoor_pointcloud.geometry.gathering import group, pick
from unbackdoor_pointcloud.geometry.interpolation import interpolate, three_nearest
from unbackdoor_pointcloud.geometry.neighbours import ball_query, nearest, squared_distances
from unbackdoor_pointcloud.geometry.sampling import farthest_points

__all__ = [
    "ball_query",
    "farthest_points",
    "group",
    "interpolate",
    "nearest",
    "pick",
    "squared_distances",
    "three_nearest",
]
