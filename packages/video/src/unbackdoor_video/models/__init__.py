"""CNN + LSTM of our own, and names for the networks of torchvision, pytorchvideo and the user."""

from __future__ import annotations

from unbackdoor_video.models.build import MODELS, build

__all__ = ["MODELS", "build"]
