"""ScanObjectNN (Uy et al. 2019, arXiv 1908.04616): objects out of scans of rooms, in its HDF5 layout."""

from __future__ import annotations

from pathlib import Path

import torch

from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.splitting import split_classes
from unbackdoor.errors import BadOption, FileRefused
from unbackdoor.files.class_names import names_of
from unbackdoor.files.reading import shown
from unbackdoor.task import Batch
from unbackdoor_pointcloud.data.normalising import same_number, unit_sphere
from unbackdoor_pointcloud.data.reading import read_hdf5

__all__ = ["scanobjectnn"]

_CLASSES = (
    *("bag", "bin", "box", "cabinet", "chair", "desk", "display", "door"),
    *("shelf", "table", "bed", "pillow", "sink", "sofa", "toilet"),
)
_VARIANTS = {
    "plain": "objectdataset",
    "t25": "objectdataset_augmented25_norot",
    "t25_r": "objectdataset_augmented25rot",
    "t50_r": "objectdataset_augmentedrot",
    "t50_rs": "objectdataset_augmentedrot_scale75",
}


def scanobjectnn(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    points: int = 1024,
    variant: str = "plain",
    background: bool = True,
) -> Splits:
    """ScanObjectNN, 15 classes; ``path``: its folder ``h5_files``. Clean: 400 clouds of the training part.

    Args:
        seed: Of the clean set and of the points where a cloud has more.
        path: ``h5_files``, or ``main_split`` or ``main_split_nobg`` within it.
        clean_share: Share of the training part that the defender holds.
        clean_count: Their number instead; None for both means 400.
        points: Of each cloud.
        variant: ``"plain"``, ``"t25"``, ``"t25_r"``, ``"t50_r"`` or ``"t50_rs"``, the hardest.
        background: Whether objects come with the points around them.

    Raises:
        FileRefused: The files are not there.
        BadOption: ``variant`` is not known.
    """
    if variant not in _VARIANTS:
        raise BadOption(f"variant is {variant!r}; it must be one of {', '.join(_VARIANTS)}.")
    if path is None:
        raise FileRefused("no path; give the folder h5_files of ScanObjectNN.")
    root = Path(path)
    inner = root / ("main_split" if background else "main_split_nobg")
    root = inner if inner.is_dir() else root
    stem = _VARIANTS[variant]
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for part in ("training", "test"):
        file = root / f"{part}_{stem}.h5"
        if not file.is_file():
            raise FileRefused(f"no {file.name} in {shown(root)}; give the folder h5_files of ScanObjectNN.")
        clouds, labels = read_hdf5([file])
        names_of(labels, _CLASSES, shown(file))
        parts.append(Batch(unit_sphere(same_number(clouds, points, generator)), labels))
    return split_classes(
        parts[0],
        parts[1],
        _CLASSES,
        seed=seed,
        clean_share=clean_share,
        clean_count=400 if clean_share is None and clean_count is None else clean_count,
        hints={"rotate": "none"},
    )
