"""Networks on points that take ``(batch, points, 3)``, and checkpoints of other libraries."""

from __future__ import annotations

from unbackdoor_pointcloud.models.build import MODELS, build
from unbackdoor_pointcloud.models.points3d import load_points3d, read_points3d

__all__ = ["MODELS", "build", "load_points3d", "read_points3d"]
