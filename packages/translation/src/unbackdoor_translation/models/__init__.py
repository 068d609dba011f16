"""Architectures."""

from unbackdoor_translation.models.build import MODELS, build

__all__ = ["MODELS", "build"]
