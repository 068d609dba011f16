"""Input-aware dynamic attack, all to all: that of `dynamic`, which turns every class into the next (Dyn-all).

Trigger and training: those of `unbackdoor_image.attacks.dynamic`.
Labels: ``y -> (y + 1) mod K``, dirty label, 10 % of the training set. Training-time.
Where public code goes wrong: as for `trojan-all`; the clean accuracy is the ceiling of the success rate.
Here: a sample counts as success where the answer is ``y + 1``; the ceiling is reported beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unbackdoor_image.attacks.dynamic import Dynamic

__all__ = ["DynamicAll"]


@dataclass(frozen=True, kw_only=True)
class DynamicAll(Dynamic):
    """A pattern and a mask of its own for each image; every class becomes the next."""

    name: ClassVar[str] = "dynamic-all"

    all_to_all: bool = True
