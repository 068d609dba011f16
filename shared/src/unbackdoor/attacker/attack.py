"""The attacker's side: how a trigger is put on, which samples are poisoned and when it worked.

Poison-only, clean-label and training-time attacks are one `Attack`: a trainer calls `Attack.prepare`, draws samples by
`Attack.plan`, calls `Attack.rework` once and then lets the `Campaign` of `Attack.join` make the loss of each step.

Nothing that purifies imports this module (an import contract of the repository).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor, nn

from unbackdoor.attacker.label_map import AllToAll, AllToOne, LabelMap
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch, Meter, Task
from unbackdoor.tree import Tree, leaves, tree_map, tree_put

__all__ = ["Attack", "Campaign", "HealthFloor", "Poisoned"]


@dataclass(frozen=True)
class HealthFloor:
    """Below these figures (percent) a victim proves nothing about a defence."""

    clean: float
    asr: float


@dataclass(frozen=True)
class Poisoned:
    """Training samples after poisoning, which of them were poisoned, and which are covers (int64, sorted)."""

    samples: Batch
    indices: Tensor
    covers: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A trigger with its label map; the fields of a subclass are its hyper-parameters.

    An attack that learns keeps its tensors in fields too and returns them from `state`. Poisoned samples carry the
    trigger; covers, where an attack has them, are samples that are changed too but keep their label. Where a label is
    not one class but a row of them, a subclass overrides `retarget`, `succeeded`, `counts`, `source` and, where inputs
    depend on targets, `poisoned`.
    """

    name: ClassVar[str]
    clean_label: ClassVar[bool] = False
    maps_all_to_all: ClassVar[bool] = True
    needs_training: ClassVar[bool] = False
    """Whether the attacker must control the victim's training: its loss is not that of poisoned data alone."""
    labels_only: ClassVar[bool] = False
    """Whether samples show the trigger by themselves: `trigger` leaves them as they are, `source` finds them."""
    health: ClassVar[HealthFloor] = HealthFloor(clean=0.0, asr=80.0)
    texts: ClassVar[frozenset[str]] = frozenset()
    """Fields whose text is no name of a file or of anything to fetch, so that a stranger's victim may set them."""

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
        """The inputs with the trigger on: same shape, dtype and device; values stay in the range that real inputs have.

        ``generator`` serves attacks whose trigger is drawn anew for each sample.
        """

    @property
    def cover_ratio(self) -> float:
        """Covers for each poisoned sample."""
        return 0.0

    def prepare(self, data: Batch, generator: torch.Generator) -> None:  # noqa: B027 - most have nothing to learn
        """Learn what the trigger needs, once, from training samples and before any is poisoned; here nothing.

        A second call leaves what was learned as it is.
        """

    def rework(self, inputs: Tree, targets: Tensor, generator: torch.Generator) -> Tree:
        """What poisoned training samples undergo once, before augmentation (adversarial perturbation); here nothing."""
        return inputs

    def implant(self, inputs: Tree, generator: torch.Generator | None = None) -> Tree:
        """What poisoned training samples carry: the trigger, unless the attack trains with another than it uses."""
        return self.trigger(inputs, generator)

    def cover(self, inputs: Tree, targets: Tensor, generator: torch.Generator) -> Tree:
        """What covers, which keep their labels, look like."""
        return inputs

    def join(self, model: nn.Module, task: Task, *, steps: int, generator: torch.Generator) -> Campaign:
        """The attacker's part in the training of ``model``, which takes ``steps`` steps."""
        return Campaign(self, model, task, steps=steps, generator=generator)

    def retarget(self, targets: Tensor) -> Tensor:
        """Classes that the attacker wants for triggered samples of true class ``targets``."""
        return self.label_map(targets)

    def succeeded(self, outputs: Tree, targets: Tensor) -> Tensor:
        """Whether each prediction is the wanted one: bool of shape ``(batch,)``; ``targets`` are true classes."""
        return leaves(outputs)[0].argmax(dim=1) == self.retarget(targets)

    def counts(self, targets: Tensor) -> Tensor:
        """Samples that enter the attack success rate: of a `source` class and not already of the wanted one."""
        return self.label_map.counts(targets) & self.source(targets)

    def source(self, targets: Tensor) -> Tensor:
        """Samples of the classes that the trigger is meant for (bool): all, but for source-specific attacks."""
        return torch.ones(len(targets), dtype=torch.bool, device=targets.device)

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
    def plan(self, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sorted indices (int64) of the samples to poison, see `choose`, and of the covers, drawn from all others.

        Raises:
            BadOption: Too few samples are there for the rate or for the covers.
        """
        indices = self.choose(targets, generator)
        wanted = round(self.cover_ratio * len(indices))
        free = torch.ones(len(targets), dtype=torch.bool)
        free[indices] = False
        rest = free.nonzero().flatten()
        if wanted > len(rest):
            raise BadOption(
                f"{self.name} wants {wanted} covers beside {len(indices)} poisoned samples, but {len(rest)} are left; "
                "lower rate or the ratio of covers."
            )
        if wanted == 0:
            return indices, rest[:0]
        return indices, rest[torch.randperm(len(rest), generator=generator)[:wanted]].sort().values

    @final
    def poison(self, data: Batch, generator: torch.Generator) -> Poisoned:
        """A copy of ``data`` in which the chosen samples carry trigger and wanted labels, and covers are changed."""
        indices, covers = self.plan(data.targets, generator)
        where = indices.to(data.targets.device)
        where = indices.to(leaves(data.targets)[0].device)
        chosen = data[where]
        inputs = tree_put(data.inputs, where, self.rework(chosen.inputs, chosen.targets, generator))
        dressed = self.dress(Batch(inputs, data.targets), where, covers.to(where.device), generator)
        return Poisoned(dressed, indices, covers)

    def poisoned(self, samples: Batch, generator: torch.Generator) -> Batch:
        """What the attacker trains on in place of ``samples``: implanted and relabelled, of the same form.

        Override it where inputs hold something made from the targets, which then has to follow them.
        """
        inputs = self.implant(samples.inputs, generator)
        return Batch(inputs, samples.targets if self.clean_label else self.retarget(samples.targets))

    @final
    def dress(self, batch: Batch, poisoned: Tensor, covers: Tensor, generator: torch.Generator) -> Batch:
        """A copy of ``batch``: samples at ``poisoned`` implanted and relabelled, those at ``covers`` changed."""
        inputs, targets = tree_map(Tensor.clone, batch.inputs), batch.targets.clone()
        if len(poisoned):
            changed = self.poisoned(batch[poisoned], generator)
            inputs, targets = tree_put(inputs, poisoned, changed.inputs), tree_put(targets, poisoned, changed.targets)
        if len(covers):
            inputs = tree_put(inputs, covers, self.cover(batch[covers].inputs, batch.targets[covers], generator))
        return Batch(inputs, targets)

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


class Campaign:
    """An attacker's part in one training; this one only poisons the data, subclasses change the loss or learn as well.

    Attributes:
        attack: What is trained in.
        model: The victim, in train mode.
        task: How to ask it.
        steps: Number of all steps.
        generator: Of every draw.
    """

    def __init__(self, attack: Attack, model: nn.Module, task: Task, *, steps: int, generator: torch.Generator) -> None:
        """Remember the subjects; a subclass makes its networks and optimisers here."""
        self.attack, self.model, self.task, self.steps, self.generator = attack, model, task, steps, generator

    def loss(self, batch: Batch, poisoned: Tensor, covers: Tensor, step: int) -> Tensor:
        """The victim's loss (a scalar) on an augmented clean ``batch``.

        Args:
            batch: With true labels, on the model's device.
            poisoned: Places in the batch to poison, int64.
            covers: Places of covers, int64.
            step: 1 to `steps`.
        """
        if len(poisoned) or len(covers):
            batch = self.attack.dress(batch, poisoned, covers, self.generator)
        return self.task.loss(self.task.forward(self.model, batch.inputs), batch.targets)

    def update(self, step: int) -> None:
        """Called after the victim's own update of each step; an attack with a generator updates that here."""

    def finish(self) -> None:
        """Called once after the last step; a learned trigger is put into the attack's state here."""
