"""Where images with label rows come from; every loader gives the three disjoint parts of the threat model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from unbackdoor.attacker.kit import Splits
from unbackdoor_multilabel.data.clean import load_clean
from unbackdoor_multilabel.data.digits import digits
from unbackdoor_multilabel.data.official import coco, voc
from unbackdoor_multilabel.data.tables import hub, parquet

__all__ = ["LOADERS", "load_clean"]

LOADERS: Mapping[str, Callable[..., Splits]] = {
    "coco": coco,
    "digits": digits,
    "hub": hub,
    "parquet": parquet,
    "voc": voc,
}
