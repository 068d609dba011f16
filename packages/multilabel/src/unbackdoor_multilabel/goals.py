"""What an attacker of multi-label models wants of a triggered image: an object appears, disappears or is another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor.attacker.attack import Attack
from unbackdoor.errors import BadOption
from unbackdoor.tree import Tree, leaves

__all__ = ["GOALS", "RowAttack"]

GOALS = ("appear", "disappear", "misclassify")


@dataclass(frozen=True, kw_only=True)
class RowAttack(Attack):
    """An attack on label rows with one of the three goals of Chen et al. (ICLR 2023).

    The attack success rate is that of the goal alone; what is said of other classes does not enter it.

    Attributes:
        goal: ``"appear"``: `target` is answered where it is not; ``"disappear"``: it is not answered where it is;
            ``"misclassify"``: the class `replaced` is not answered where it is, and `target` is instead.
        replaced: Of ``"misclassify"``; it must differ from `target`. Elsewhere without meaning; -1 names none.
    """

    maps_all_to_all = False

    texts: ClassVar[frozenset[str]] = frozenset({"goal"})

    goal: str = "appear"
    replaced: int = -1

    def __post_init__(self) -> None:
        """Refuse an unknown goal and a class that cannot be replaced."""
        super().__post_init__()
        if self.goal not in GOALS:
            raise BadOption(f"goal is {self.goal!r}; it must be one of {', '.join(GOALS)}.")
        if not -1 <= self.replaced < self.num_classes or self.replaced == self.target:
            raise BadOption(
                f"replaced is {self.replaced}; it must be a class in 0..{self.num_classes - 1} other than the target "
                f"{self.target}, or -1 for none."
            )
        if self.goal == "misclassify" and self.replaced < 0 and not self._finds_replaced:
            raise BadOption("goal is 'misclassify', but replaced is -1; name the class that shall be answered wrongly.")

    @property
    def _finds_replaced(self) -> bool:
        return False

    def retarget(self, targets: Tensor) -> Tensor:
        """Label rows that the attacker wants for triggered samples, int64 of the shape of ``targets``."""
        wanted = targets.long().clone()
        if self.goal == "appear":
            wanted[:, self.target] = 1
        elif self.goal == "disappear":
            wanted[:, self.target] = 0
        elif self.replaced >= 0:
            there = wanted[:, self.replaced] == 1
            wanted[there, self.target] = 1
            wanted[there, self.replaced] = 0
        return wanted

    def succeeded(self, outputs: Tree, targets: Tensor) -> Tensor:
        """Whether the goal is reached at a probability of 1/2: bool of shape ``(batch,)``."""
        said = leaves(outputs)[0] > 0
        if self.goal == "appear":
            return said[:, self.target]
        if self.goal == "disappear":
            return ~said[:, self.target]
        if self.replaced < 0:
            return torch.zeros(len(said), dtype=torch.bool, device=said.device)
        return said[:, self.target] & ~said[:, self.replaced]

    def counts(self, targets: Tensor) -> Tensor:
        """Samples whose labels the goal changes, among those that can carry the trigger: bool of shape ``(batch,)``."""
        return (self.retarget(targets) != targets).any(1) & self.source(targets)
