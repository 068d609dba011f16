"""TrojanNN, all to all: the square of `trojan`, which turns every class into the next (the papers' Troj-all).

Trigger: that of `unbackdoor_image.attacks.trojan`.
Labels: ``y -> (y + 1) mod K``, dirty label, 10 % of the training set. Poison-only.
Where public code goes wrong: ASR of 100 at a clean accuracy of 88 (NFT, Table 1) cannot be met by this definition,
since a model must know ``y`` to answer ``y + 1``; what was counted there is not said.
Here: a sample counts as success where the answer is ``y + 1``; the clean accuracy is the ceiling, reported beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unbackdoor_image.attacks.trojan import Trojan

__all__ = ["TrojanAll"]


@dataclass(frozen=True, kw_only=True)
class TrojanAll(Trojan):
    """A square found by exciting neurons of a clean network; every class becomes the next."""

    name: ClassVar[str] = "trojan-all"

    all_to_all: bool = True
