"""The ML-Decoder head, small models of our own, and backbones of timm and torchvision."""

from __future__ import annotations

from unbackdoor_multilabel.models.build import MODELS, build
from unbackdoor_multilabel.models.ml_decoder import Backboned, MLDecoder

__all__ = ["MODELS", "Backboned", "MLDecoder", "build"]
