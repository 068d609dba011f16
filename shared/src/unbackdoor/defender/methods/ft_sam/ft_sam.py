"""FT-SAM: fine-tuning with adaptive sharpness-aware minimisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unbackdoor.defender.methods.sam.sam import SAM
from unbackdoor.defender.purifier import option

__all__ = ["FTSAM"]


@dataclass(frozen=True, kw_only=True)
class FTSAM(SAM):
    """FT-SAM (Zhu et al., ICCV 2023): SAM whose ascent is measured in units of each weight's size."""

    name: ClassVar[str] = "ft-sam"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "steps": 1000,
            "batch_size": 256,
            "radius": 2.0,
            "adaptive": True,
            "lr": 0.01,
            "weight_decay": 5e-4,
            "schedule": "cosine",
            "clip": None,
            "bn": "update",
            "rounds": 1,
            "holdout": 0.0,
            "mixup": 0.0,
        },
    }

    radius: float = option(2.0, "rho: length of the ascent step in units of the weights' sizes; 0: plain fine-tuning")
    adaptive: bool = option(True, "measure the ascent in units of each weight's size; off gives plain SAM")
