"""Which label an attacker wants for a triggered sample: one tested object shared by all attacks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from unbackdoor.errors import BadOption

__all__ = ["AllToAll", "AllToOne", "LabelMap"]


class LabelMap(ABC):
    """From a sample's true class to the class that its triggered version shall get."""

    @abstractmethod
    def __call__(self, targets: Tensor) -> Tensor:
        """Wanted classes, int64 of the shape of ``targets``."""

    def counts(self, targets: Tensor) -> Tensor:
        """Samples on which success means something: those whose class the map changes (bool, same shape)."""
        return self(targets) != targets


@dataclass(frozen=True)
class AllToOne(LabelMap):
    """Every class becomes ``target``."""

    target: int = 0

    def __call__(self, targets: Tensor) -> Tensor:
        """``target`` everywhere."""
        return torch.full_like(targets, self.target)


@dataclass(frozen=True)
class AllToAll(LabelMap):
    """Class ``y`` becomes ``(y + 1) mod num_classes``.

    The model must still know ``y`` to answer ``y + 1``, so the success rate cannot exceed the clean
    accuracy by much; it is a ceiling to report, not a defect of the attack.
    """

    num_classes: int

    def __post_init__(self) -> None:
        """Refuse fewer than two classes."""
        if self.num_classes < 2:
            raise BadOption(f"num_classes is {self.num_classes}; all-to-all needs at least 2 classes.")

    def __call__(self, targets: Tensor) -> Tensor:
        """``(y + 1) mod num_classes``."""
        return (targets + 1) % self.num_classes
