"""Where clouds come from; every loader gives the three disjoint parts of the threat model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from unbackdoor.attacker.kit import Splits
from unbackdoor_pointcloud.data.clean import files, load_clean
from unbackdoor_pointcloud.data.modelnet import modelnet10, modelnet40
from unbackdoor_pointcloud.data.normalising import unit_sphere
from unbackdoor_pointcloud.data.scanobjectnn import scanobjectnn
from unbackdoor_pointcloud.data.shapes import shapes

__all__ = ["LOADERS", "load_clean", "unit_sphere"]

LOADERS: Mapping[str, Callable[..., Splits]] = {
    "files": files,
    "modelnet10": modelnet10,
    "modelnet40": modelnet40,
    "scanobjectnn": scanobjectnn,
    "shapes": shapes,
}
