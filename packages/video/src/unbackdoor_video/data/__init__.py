"""Where clips come from; every loader gives the three disjoint parts of the threat model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from unbackdoor.attacker.kit import Splits
from unbackdoor_video.data.clean import load_clean
from unbackdoor_video.data.folder import folder
from unbackdoor_video.data.moving_digits import moving_digits
from unbackdoor_video.data.official import hmdb51, kinetics, ucf101
from unbackdoor_video.data.parquet import parquet

__all__ = ["LOADERS", "load_clean"]

LOADERS: Mapping[str, Callable[..., Splits]] = {
    "folder": folder,
    "hmdb51": hmdb51,
    "kinetics": kinetics,
    "moving_digits": moving_digits,
    "parquet": parquet,
    "ucf101": ucf101,
}
