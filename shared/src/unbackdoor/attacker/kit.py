"""What a task package exports: one `TaskKit` under the entry-point group ``unbackdoor.tasks``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from unbackdoor.attacker.attack import Attack
from unbackdoor.task import Batch, Task

__all__ = ["Demo", "Excerpt", "Picture", "Splits", "TaskKit", "Trainer"]


@dataclass(frozen=True)
class Splits:
    """A data set in the three parts of the threat model, disjoint.

    Attributes:
        train: What the attacker poisons and trains on.
        clean: What the defender holds.
        test: What figures are measured on; nothing that purifies sees it.
        classes: Names of the classes, in label order.
        hints: Options of the package's `Task` that fit this data (flips, normalisation).
        attack_hints: Options of its attacks that fit this data.
        files: What was fitted to the data while reading and must not be fitted anew: contents by file
            name, whose stem is the loader's option that takes such a file. A victim's folder keeps them.
    """

    train: Batch
    clean: Batch
    test: Batch
    classes: tuple[str, ...]
    hints: Mapping[str, Any] = field(default_factory=dict)
    attack_hints: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


class Trainer(Protocol):
    """Trains a victim, or a clean model where ``attack`` is None."""

    def __call__(
        self,
        model: nn.Module,
        data: Splits,
        task: Task,
        attack: Attack | None,
        *,
        seed: int,
        progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
        **options: Any,
    ) -> None:
        """Train ``model`` in place; ``progress(step, steps, scalars)`` is called now and then."""


class Picture(Protocol):
    """Draws clean and triggered samples with the answers of several models."""

    def __call__(
        self, path: Path, samples: Batch, attack: Attack, models: Mapping[str, nn.Module], task: Task, data: Splits
    ) -> None:
        """Write the picture to ``path``."""


class Excerpt(Protocol):
    """Some samples in words, with the answers of several models."""

    def __call__(
        self, samples: Batch, attack: Attack, models: Mapping[str, nn.Module], task: Task, data: Splits
    ) -> list[Mapping[str, str]]:
        """A row for each thing shown, all with the same columns."""


@dataclass(frozen=True)
class Demo:
    """The victim of ``unbackdoor demo``: names within the kit, and options for each."""

    data: str
    model: str
    attack: str
    data_options: Mapping[str, Any] = field(default_factory=dict)
    model_options: Mapping[str, Any] = field(default_factory=dict)
    train_options: Mapping[str, Any] = field(default_factory=dict)
    attack_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TaskKit:
    """Everything that the command line and the benchmark need of a task, found by name.

    Attributes:
        task: Makes the task; keyword options are those of `Splits.hints`.
        build: ``build(name, num_classes=..., seed=..., **options)`` makes a model by name.
        models: Names that `build` is tested with, each with a line of explanation.
        attacks: Attack classes by name.
        data: Loaders by name: ``loader(seed=..., path=..., **options) -> Splits``.
        load_clean: ``load_clean(source, **options) -> (Batch, classes)`` reads the user's own labelled files.
        train: Trains a victim.
        demo: The victim of the demo.
        picture: Draws it.
        excerpt: Shows some of it in words, where that says more than a picture; None where it does not.
        preview: ``preview(path, attacks, samples)`` draws what triggers do; None where there is nothing to see.
        offline: Names of loaders that make or bring their data. A victim's card alone may have them called; all others
            read what the user names. None means the demo's.
        texts: Options of loaders whose text is no name of a file or of anything to fetch: what a card may set.
        files: Options of loaders that take a file of `Splits.files`: those that a victim's folder may bring.
    """

    task: Callable[..., Task]
    build: Callable[..., nn.Module]
    models: Mapping[str, str]
    attacks: Mapping[str, type[Attack]]
    data: Mapping[str, Callable[..., Splits]]
    load_clean: Callable[..., tuple[Batch, tuple[str, ...]]]
    train: Trainer
    demo: Demo
    picture: Picture
    preview: Callable[[Path, Sequence[Attack], Batch], None] | None = None
    excerpt: Excerpt | None = None
    offline: frozenset[str] | None = None
    texts: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()

    def attack(self, name: str, data: Splits, **options: Any) -> Attack:
        """The attack ``name`` for ``data``: ``options`` over what the data say of it."""
        return self.attacks[name](**{"num_classes": len(data.classes), **data.attack_hints, **options})
