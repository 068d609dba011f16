"""Where images come from; every loader gives the three disjoint parts of the threat model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from unbackdoor.attacker.kit import Splits
from unbackdoor_image.data.clean import load_clean
from unbackdoor_image.data.digits import digits
from unbackdoor_image.data.folder import folder
from unbackdoor_image.data.hub import hub
from unbackdoor_image.data.known import cifar10, gtsrb
from unbackdoor_image.data.large import imagenet, tinyimagenet
from unbackdoor_image.data.parquet import parquet

__all__ = ["LOADERS", "load_clean"]

LOADERS: Mapping[str, Callable[..., Splits]] = {
    "cifar10": cifar10,
    "digits": digits,
    "folder": folder,
    "gtsrb": gtsrb,
    "hub": hub,
    "imagenet": imagenet,
    "parquet": parquet,
    "tinyimagenet": tinyimagenet,
}
