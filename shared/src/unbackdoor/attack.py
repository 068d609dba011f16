"""The attacker's side: how a trigger is put on, which samples are poisoned and when it worked.

Nothing that purifies imports this module (an import contract of the repository).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from unbackdoor.errors import BadOption
from unbackdoor.label_map import AllToAll, AllToOne, LabelMap
from unbackdoor.task import Batch, Meter
from unbackdoor.tree import Tree, leaves, tree_put

__all__ = ["Attack", "HealthFloor", "Poisoned"]


@dataclass(frozen=True)
class HealthFloor:
    """Below these figures (percent) a victim proves nothing about a defence."""

    clean: float
    asr: float


@dataclass(frozen=True)
class Poisoned:
    """Training samples after poisoning, and which of them were poisoned (int64, sorted)."""

    samples: Batch
    indices: Tensor


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A trigger with its label map; the fields of a subclass are its hyper-parameters.

    A trained attack keeps its learned tensors in fields too and returns them from `state`. Where a label is not one
    class but a row of them, a subclass overrides `retarget`, `succeeded`, `counts` and, where inputs depend on targets,
    `poisoned`.
    """

    name: ClassVar[str]
    clean_label: ClassVar[bool] = False
    maps_all_to_all: ClassVar[bool] = True
    health: ClassVar[HealthFloor] = HealthFloor(clean=0.0, asr=80.0)

    target: int = 0
    all_to_all: bool = False
    num_classes: int = 10
    rate: float = 0.1

    def __post_init__(self) -> None:
        """Refuse a target class that does not exist and a rate outside (0, 1]."""
        if not 0 <= self.target < self.num_classes:
            raise BadOption(f"target is {self.target}; it must lie in 0..{self.num_classes - 1}.")
        if not 0 < self.rate <= 1:
            raise BadOption(f"rate is {self.rate}; the share of poisoned samples must lie in (0, 1].")
        if self.clean_label and self.all_to_all:
            raise BadOption(f"{self.name} leaves labels as they are, so all_to_all has no meaning; leave it off.")
        if self.all_to_all and not self.maps_all_to_all:
            raise BadOption(f"{self.name} has no all_to_all form; leave it off.")

    @property
    def label_map(self) -> LabelMap:
        """`AllToOne` with `target`, or `AllToAll`."""
        return AllToAll(self.num_classes) if self.all_to_all else AllToOne(self.target)

    @abstractmethod
    def trigger(self, inputs: Tree, generator: torch.Generator | None = None) -> Tree:
        """The inputs with the trigger on: same shape, dtype and device; pixels stay in [0, 1].

        ``generator`` serves attacks whose trigger is drawn anew for each sample.
        """

    def retarget(self, targets: Tensor) -> Tensor:
        """Classes that the attacker wants for triggered samples of true class ``targets``."""
        return self.label_map(targets)

    def succeeded(self, outputs: Tree, targets: Tensor) -> Tensor:
        """Whether each prediction is the wanted one: bool of shape ``(batch,)``; ``targets`` are true classes."""
        return leaves(outputs)[0].argmax(dim=1) == self.retarget(targets)

    def counts(self, targets: Tensor) -> Tensor:
        """Samples that enter the attack success rate: those not already of the wanted class."""
        return self.label_map.counts(targets)

    def eligible(self, targets: Tensor) -> Tensor:
        """Samples that may be poisoned: the target class for a clean-label attack, else `counts`."""
        return targets == self.target if self.clean_label else self.counts(targets)

    @final
    def choose(self, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Sorted indices (int64) of the samples to poison.

        A dirty-label attack takes ``round(rate * n)`` of all ``n`` samples, a clean-label one
        ``round(rate * n_target)`` of the target class, as the papers count.

        Raises:
            BadOption: Fewer samples are eligible than the rate asks for, or none is.
        """
        eligible = self.eligible(targets).nonzero().flatten().cpu()
        wanted = round(self.rate * (len(eligible) if self.clean_label else len(targets)))
        if not 0 < wanted <= len(eligible):
            raise BadOption(
                f"rate {self.rate} asks for {wanted} poisoned samples of {len(targets)}, but {len(eligible)} are "
                "eligible; change rate or target."
            )
        order = torch.randperm(len(eligible), generator=generator)
        return eligible[order[:wanted]].sort().values

    @final
    def poison(self, data: Batch, generator: torch.Generator) -> Poisoned:
        """A copy of ``data`` in which the chosen samples carry the trigger and the wanted labels."""
        indices = self.choose(data.targets, generator)
        where = indices.to(data.targets.device)
        changed = self.poisoned(data[where], generator)
        inputs = tree_put(data.inputs, where, changed.inputs)
        return Poisoned(Batch(inputs, tree_put(data.targets, where, changed.targets)), indices)

    def poisoned(self, samples: Batch, generator: torch.Generator) -> Batch:
        """What the attacker trains on in place of the chosen ``samples``; shapes, dtypes and device stay.

        Override it where inputs hold something made from the targets, which then has to follow them.
        """
        inputs = self.trigger(samples.inputs, generator)
        return Batch(inputs, samples.targets if self.clean_label else self.retarget(samples.targets))

    def meters(self) -> Mapping[str, Meter]:
        """Further figures of triggered samples by name, fed with the model's answers and the wanted targets."""
        return {}

    def options(self) -> dict[str, Any]:
        """The hyper-parameters as plain JSON values."""
        return {key: value for key, value in asdict(self).items() if not isinstance(value, Tensor)}

    def state(self) -> dict[str, Tensor]:
        """Tensors that, with `options`, make the attack again; empty where the options suffice."""
        return {}

    @classmethod
    def restore(cls, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Self:
        """The attack that `options` and `state` describe."""
        values: dict[str, Any] = {**options, **state}
        return cls(**values)
