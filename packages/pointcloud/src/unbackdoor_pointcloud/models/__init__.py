"""Networks on points that take ``(batch, points, 3)``, and checkpoints of other libraries."""

from __future__ import annotations

from unbackdoor_pointcloud.models.build import MODELS, build

__all__ = ["MODELS", "build"]
