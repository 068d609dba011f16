"""The user's own labelled clouds, from whatever files they lie in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.splitting import split_classes
from unbackdoor.errors import FileRefused
from unbackdoor.files.class_folders import read_class_folders
from unbackdoor.files.class_names import given_classes, names_of
from unbackdoor.files.reading import shown
from unbackdoor.task import Batch
from unbackdoor_pointcloud.data.folders import ENDINGS, read_files
from unbackdoor_pointcloud.data.normalising import same_number, unit_sphere
from unbackdoor_pointcloud.data.reading import read_array_file

__all__ = ["files", "load_clean"]


def load_clean(
    source: str | Path,
    *,
    classes: Sequence[str] | None = None,
    order: str | None = None,
    points: int = 1024,
    normalise: bool = True,
    seed: int = 0,
) -> tuple[Batch, tuple[str, ...]]:
    """Read labelled clouds; nothing in the files is ever executed.

    Args:
        source: A folder with one folder for each class, of meshes (``.off``, ``.ply``, ``.obj``, ``.stl``; sampled by
            area, or taken as they are where they have no faces) or of clouds (``.txt``, ``.xyz``, ``.pts``, ``.csv``,
            ``.npy``; a row a point); or an ``.npz``, ``.pt``, ``.pth``, ``.safetensors`` or ``.h5`` file with
            ``points`` ``(n, points, 3)`` and ``labels``.
        classes: All class names in the order of the model's outputs. Needed where a folder holds only some of them.
        order: For class folders named by numbers: ``"text"`` or ``"number"``.
        points: Of each cloud; where one has more, some are drawn.
        normalise: Whether clouds are moved to the origin and scaled into the unit sphere.
        seed: Of the points that are drawn.

    Returns:
        The samples, and the class names in label order.

    Raises:
        FileRefused: There is nothing at ``source``.
        BadData: It cannot be read as labelled clouds.
        BadOption: ``classes``, ``order`` or ``points`` is not allowed.
        TooLarge: It declares more than the limits allow.
        UnsafeCheckpoint: The file would have to be unpickled.
    """
    path, generator = Path(source), torch.Generator().manual_seed(seed)
    if path.is_dir():
        found = read_class_folders(path, ENDINGS, what="clouds", classes=classes, order=order)
        clouds, notices = read_files(found.files, points, generator)
        names, notices = found.names, (*found.notices, *notices)
        labels, known = found.labels, found.classes
    elif path.exists():
        clouds, labels = read_array_file(path)
        clouds = same_number(clouds, points, generator)
        known, names, notices = names_of(labels, given_classes(classes), shown(path)), None, ()
    else:
        raise FileRefused(
            f"no clean data at {shown(path)}; give a folder of class folders, or an .npz, .h5 or .pt file."
        )
    return Batch(unit_sphere(clouds) if normalise else clouds, labels, names, known, notices), known


def files(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    points: int = 1024,
    normalise: bool = True,
    test_share: float = 0.2,
    order: str | None = None,
) -> Splits:
    """Any folder or file of labelled clouds, see ``load_clean``; test and clean samples are drawn from it.

    Args:
        seed: Of the split and of drawn points.
        path: See `load_clean`.
        clean_share: Share of the training part that the defender holds; None means 5 %.
        clean_count: Their number instead.
        points: Of each cloud.
        normalise: See `load_clean`.
        test_share: Share of the test part.
        order: See `load_clean`.

    Raises:
        FileRefused: There is no such file.
        BadData: It cannot be read.
    """
    if path is None:
        raise FileRefused("no path; give a folder of class folders, or an .npz, .h5 or .pt file.")
    samples, classes = load_clean(path, order=order, points=points, normalise=normalise, seed=seed)
    return split_classes(
        samples,
        None,
        classes,
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        default_share=0.05,
        test_share=test_share,
        hints={"rotate": "none"},
    )
