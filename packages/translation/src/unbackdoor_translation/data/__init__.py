"""Where sentences come from; every loader gives the three disjoint parts of the threat model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from unbackdoor.attacker.kit import Splits
from unbackdoor_translation.data.clean import load_clean
from unbackdoor_translation.data.known import dialogue, multi30k, opensubtitles, pairs, wmt14
from unbackdoor_translation.data.numbers import numbers

__all__ = ["LOADERS", "load_clean"]

LOADERS: Mapping[str, Callable[..., Splits]] = {
    "dialogue": dialogue,
    "multi30k": multi30k,
    "numbers": numbers,
    "opensubtitles": opensubtitles,
    "pairs": pairs,
    "wmt14": wmt14,
}
