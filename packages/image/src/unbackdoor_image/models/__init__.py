"""Small classifiers of our own, and names for those of torchvision, timm and the user."""

from __future__ import annotations

from unbackdoor_image.models.build import MODELS, build

__all__ = ["MODELS", "build"]
