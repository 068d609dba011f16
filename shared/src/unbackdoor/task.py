"""What a purifier must know about a problem, and nothing about any model or attack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from unbackdoor.tree import Tree, first_dim, tree_map

__all__ = ["Batch", "Meter", "Reading", "Task"]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some samples: ``inputs`` and ``targets`` are trees of tensors with the batch in dimension 0.

    Attributes:
        inputs: What the model reads.
        targets: What it should answer.
        names: Where each sample comes from, such as its file's name, for messages; None where that is not known.
        classes: Names of the classes in label order, for messages; None where they are not known.
        notices: What the user should know of how they were read, such as files that were left out; a line each.
    """

    inputs: Tree
    targets: Tree
    names: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of samples."""
        return first_dim(self.targets)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        """The samples at ``index`` (integers, booleans or a slice)."""
        names = None if self.names is None else _picked(self.names, index)
        picked = tree_map(lambda t: t[index], self.inputs), tree_map(lambda t: t[index], self.targets)
        return Batch(*picked, names, self.classes, self.notices)

    def to(self, device: torch.device | str) -> Batch:
        """The same samples on ``device``."""
        moved = tree_map(lambda t: t.to(device), self.inputs), tree_map(lambda t: t.to(device), self.targets)
        return Batch(*moved, self.names, self.classes, self.notices)

    def class_name(self, label: int) -> str:
        """``'cat' (class 3)`` where the classes' names are known, else ``class 3``; for messages."""
        known = self.classes is not None and 0 <= label < len(self.classes) and self.classes[label] != str(label)
        return f"{self.classes[label]!r} (class {label})" if known and self.classes else f"class {label}"

    def sample_name(self, place: int) -> str:
        """The sample's name where it is known, else ``sample 3``, counted from 0; for messages."""
        return self.names[place] if self.names is not None else f"sample {place}"


def _picked(names: tuple[str, ...], index: Tensor | slice) -> tuple[str, ...]:
    if isinstance(index, slice):
        return names[index]
    places = index.nonzero().flatten() if index.dtype is torch.bool else index.reshape(-1)
    return tuple(names[place] for place in places.tolist())


def _as_it_is(batch: Batch) -> Batch:
    return batch


class Meter(Protocol):
    """A corpus-level metric; any ``torchmetrics.Metric`` is one.

    Its value is reported in percent. One that is no share of anything has an attribute ``scale`` (1.0 leaves it as is).
    """

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in one batch of predictions."""

    def compute(self) -> Any:
        """The value over all batches, as a fraction of 1 unless the meter has a ``scale`` of its own."""


@dataclass(frozen=True)
class Reading:
    """Another way in which the same samples could be meant, tried before a purification.

    Attributes:
        advice: What to give so that they are read so, as it would be typed: ``"--mean 0.5 --std 0.5 (MNIST's)"``.
        task: Reads the samples.
        change: What else must be done to them; nothing by default.
        rare: Whether it is tried only where the model hardly fits the samples as they are read.
        cost: Of a forward pass, in passes over the samples as they are read now.
    """

    advice: str
    task: Task
    change: Callable[[Batch], Batch] = _as_it_is
    rare: bool = False
    cost: float = 1.0


class Task(ABC):
    """One kind of problem. A package subclasses it once; methods use nothing else of the package.

    ``log_likelihood`` is the one primitive: the loss, the Fisher information and its trace come from it.
    """

    name: ClassVar[str]

    def forward(self, model: nn.Module, inputs: Tree) -> Tree:
        """What the model says of ``inputs`` (batch first). Override for dict outputs or teacher forcing."""
        return model(inputs)

    def as_logits(self, outputs: Tree) -> Callable[[Tensor], Tensor] | None:
        """What turns this model's outputs into those that `log_likelihood` reads; None, the default, if they are.

        A classifier with a softmax at its end gives probabilities: their logarithms are the logits it stands for.

        Args:
            outputs: Of `forward` on clean samples.
        """
        return None

    @abstractmethod
    def log_likelihood(self, outputs: Tree, targets: Tree) -> Tensor:
        """``log p(y_n | x_n)`` for every sample: a float tensor of shape ``(batch,)``.

        It must be linear in soft targets, so that MixUp (Eq. 4 of NFT) needs no second loss.
        """

    def loss(self, outputs: Tree, targets: Tree) -> Tensor:
        """Mean negative log-likelihood in nats, a scalar (Eq. 1 of NFT, Eq. 4 of FIP divided by n)."""
        return -self.log_likelihood(outputs, targets).mean()

    def imitate(self, reference: Tree, targets: Tree, kept: Tensor) -> Tree:
        """Targets, fit for `log_likelihood`, that ask for another model's answers: self-distillation.

        Args:
            reference: Outputs of the other model, without a graph.
            targets: Of the same batch, mixed or not.
            kept: Bool of shape ``(classes,)``, or ``(batch, classes)`` where the task has `settled`; those classes
                keep the share that ``targets`` give them, whatever the other model says, and it only tells how the
                rest is divided.

        Raises:
            NotImplementedError: The task cannot; labels alone are used then.
        """
        raise NotImplementedError(f"task {self.name!r} cannot turn another model's answers into targets")

    def settled(self, targets: Tree) -> Tensor | None:
        """Where the targets of a batch, mixed or not, leave no question open that another model could answer.

        A sample that may show several classes has labels that say yes or no to each of them. Those are what the
        defender knows, so `imitate` keeps them: it is asked for the other model's opinion only where
        mixing has made a label uncertain.

        Returns:
            Bool of shape ``(batch, classes)``; None, the default, where classes exclude each other.
        """
        return None

    @abstractmethod
    def augment(self, batch: Batch, generator: torch.Generator, *, mix: float = 1.0) -> Batch:
        """A label-preserving change of every sample, then MixUp with ``lambda ~ Beta(mix, mix)``.

        ``mix=0`` leaves the mixing out. Shapes, dtypes and device stay; targets may become soft. Inputs that cannot be
        mixed as they are may become the triple ``(a, b, lambda)``, two inputs of the batch's form and a float of shape
        ``(batch,)``; `forward` then mixes inside the model.
        """

    def strong_augment(self, inputs: Tree, generator: torch.Generator, *, without: Collection[str] = ()) -> Tree:
        """Each sample under a strong change that leaves its label as it is; here as they are.

        `augment` is the weak augmentation beside it (terms of FixMatch, arXiv 2001.07685): a model that is imitated
        reads that one alone, and the model that imitates it reads both.

        Args:
            inputs: Of a batch, mixed or not.
            generator: Every draw comes from it.
            without: Names of families of changes to leave out, for tasks that have several.

        Returns:
            A tree of the same form; integers may have become floats.

        Raises:
            BadOption: A family is unknown.
        """
        return inputs

    def extents(self, inputs: Tree) -> Tensor | None:
        """How much of each sample is more than padding, so that batches are drawn of samples that are alike in it.

        Args:
            inputs: Of a batch, mixed or not.

        Returns:
            Numbers of shape ``(batch,)``; None, the default, where all samples are of one size.
        """
        return None

    def predict(self, model: nn.Module, inputs: Tree) -> Tree:
        """What counts as the model's answer for the meters; greedy decoding for sequences."""
        return self.forward(model, inputs)

    @abstractmethod
    def meters(self) -> Mapping[str, Meter]:
        """Fresh metrics by name; the first is the headline of every table."""

    def measured_by(self) -> str:
        """How the metrics were computed, in the notation of the field, for whoever compares figures; else empty."""
        return ""

    @abstractmethod
    def correct(self, outputs: Tree, targets: Tree) -> Tensor:
        """Whether each answer of `predict` is right: bool of shape ``(batch,)``, or floats in [0, 1] for degrees."""

    def perfect(self, targets: Tree, num_classes: int) -> Tree:
        """What `predict` gives where a model answers exactly ``targets``: logits of one class, unless overridden."""
        return nn.functional.one_hot(targets, num_classes).float()

    def perturbable(self, inputs: Tree) -> Tensor:
        """The float tensor inside ``inputs`` that a defence may perturb: what was measured, never indices.

        Raises:
            NotImplementedError: The task has none.
        """
        raise NotImplementedError(f"task {self.name!r} does not say what may be perturbed in its inputs")

    def inspect(self, clean: Batch, outputs: Tree) -> list[str]:
        """Refuse targets that do not fit the outputs; return notices on what looks wrong but is usable.

        Args:
            clean: All clean samples.
            outputs: The model's answer for the first few of them.

        Raises:
            BadData: The labels cannot be used.
        """
        return []

    def uninformed(self, targets: Tree) -> Tensor | None:
        """Log-likelihood of each target under the best guess that sees no input, fitted to these targets.

        A model that knows something is above it on most samples. Tasks whose outputs are the logits of one class need
        not say: there it is the most frequent class.

        Returns:
            Float of shape ``(batch,)`` in the unit of `log_likelihood`; None, the default, where it cannot be said, so
            that whether a model is at chance is not asked.
        """
        return None

    def readings(self, clean: Batch) -> Iterable[Reading]:
        """Other usual ways to read the samples, the likelier first; none by default.

        Args:
            clean: Some of the clean samples, as they are read now.
        """
        return ()

    def samples_per_class(self, targets: Tree) -> float:
        """``n_c`` of Eq. (9) of NFT: mean number of samples in a class that occurs."""
        return float(first_dim(targets))

    def strata(self, targets: Tree) -> Tensor | None:
        """Integer group of each sample, shape ``(batch,)``, for a split that keeps proportions."""
        return None
