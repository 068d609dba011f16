"""Meshes and clouds in files of their own, brought to one number of points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.errors import BadData, BadOption
from unbackdoor.files.reading import check_bytes, shown
from unbackdoor_pointcloud.data.meshes import MESHES, read_mesh
from unbackdoor_pointcloud.data.reading import CLOUDS, read_cloud

__all__ = ["ENDINGS", "read_files"]

ENDINGS = (*MESHES, *CLOUDS)
"""Of the files that are read as clouds, in lower case."""

_POINT = 12
_WHILE_SAMPLED = 16
"""How many times a cloud's own size trimesh takes while it samples one, about."""


def read_files(files: Sequence[Path], points: int, generator: torch.Generator) -> tuple[Tensor, tuple[str, ...]]:
    """Clouds of ``points`` points each: meshes are sampled, clouds thinned.

    Args:
        files: Their paths.
        points: Of each cloud.
        generator: Of the draws.

    Returns:
        float32 of shape ``(n, points, 3)``, and what the user should know.

    Raises:
        BadData: A file cannot be read or has too few points, or there is none.
        TooLarge: A file declares more than the limits allow.
        FileRefused: A file is not there.
        BadOption: ``points`` is below 1.
    """
    if points < 1:
        raise BadOption(f"points is {points}; a cloud has at least 1.")
    if not files:
        raise BadData(f"no files of clouds were found ({', '.join(ENDINGS)}).")
    check_bytes(f"{len(files):,} clouds of {points:,} points", (len(files) + _WHILE_SAMPLED) * points * _POINT)
    clouds, bare = [], []
    for path in files:
        sampled = False
        if path.suffix.lower() in MESHES:
            cloud, sampled = read_mesh(path, points, generator)
            if not sampled:
                bare.append(path.name)
        else:
            cloud = read_cloud(path)
        if len(cloud) < points:
            raise BadData(f"{shown(path)} has {len(cloud)} points, fewer than the {points} asked for; lower points.")
        clouds.append(cloud if sampled else cloud[torch.randperm(len(cloud), generator=generator)[:points]])
    notice = f"{len(bare)} of {len(files)} files, such as {shown(bare[0])}, hold points without faces." if bare else ""
    return torch.stack(clouds), (f"{notice} Their points were taken as they are.",) if bare else ()
