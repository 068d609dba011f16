"""Meshes and clouds in one folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.errors import BadData, FileRefused
from unbackdoor_pointcloud.data.reading import CLOUDS, MESHES, read_cloud, read_mesh

__all__ = ["class_folders", "files_below", "read_files"]


def class_folders(root: Path, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """The names of the classes: the folders of ``root`` in order of text, or ``classes``, which must cover them.

    Raises:
        FileRefused: There is no such folder.
        BadData: It holds no class folders, or one that is not among ``classes``.
    """
    if not root.is_dir():
        raise FileRefused(f"no folder at {root}; give one that holds a folder of clouds for each class.")
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise BadData(f"{root} holds no class folders.")
    if classes is None:
        return tuple(names)
    strangers = [name for name in names if name not in classes]
    if strangers:
        raise BadData(f"folders {', '.join(strangers[:8])} in {root} are not among the classes {', '.join(classes)}.")
    return tuple(classes)


def read_files(files: Sequence[tuple[Path, int]], points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clouds of ``points`` points each, and labels: meshes are sampled, clouds thinned.

    Args:
        files: Paths with their labels.
        points: Of each cloud.
        generator: Of the draws.

    Raises:
        BadData: A file cannot be read or has too few points, or there is none.
    """
    if not files:
        raise BadData(f"no files of clouds were found ({', '.join((*MESHES, *CLOUDS))}).")
    clouds = []
    for path, _ in files:
        if path.suffix.lower() in MESHES:
            clouds.append(read_mesh(path, points, generator))
            continue
        cloud = read_cloud(path)
        if len(cloud) < points:
            raise BadData(f"{path} has {len(cloud)} points, fewer than the {points} asked for; lower points.")
        clouds.append(cloud[torch.randperm(len(cloud), generator=generator)[:points]])
    return torch.stack(clouds), torch.tensor([label for _, label in files])


def files_below(root: Path) -> list[Path]:
    """All files of meshes and clouds below ``root``, sorted."""
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in (*MESHES, *CLOUDS) and path.is_file())
