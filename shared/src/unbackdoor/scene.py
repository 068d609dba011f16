"""A victim with everything around it: how it is planned, trained, described, and opened again from its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from unbackdoor.attack import Attack
from unbackdoor.errors import FileRefused
from unbackdoor.kit import Splits, TaskKit
from unbackdoor.registry import kit as kit_of
from unbackdoor.registry import unknown
from unbackdoor.report import versions
from unbackdoor.task import Task
from unbackdoor.victim import Victim, VictimCard

__all__ = ["Plan", "Scene", "is_victim", "open_victim", "task_of_victim"]


@dataclass(frozen=True)
class Plan:
    """Which victim to train: names within a kit, and options for each.

    Attributes:
        data: Name of the data set.
        model: Name of the architecture.
        attack: Name of the attack; None for a clean model.
        data_options: Of the data's loader.
        model_options: Of the architecture, without ``num_classes`` and ``seed``.
        attack_options: Of the attack, over what the data say of it.
        train_options: Of the trainer.
    """

    data: str
    model: str
    attack: str | None
    data_options: Mapping[str, Any] = field(default_factory=dict)
    model_options: Mapping[str, Any] = field(default_factory=dict)
    attack_options: Mapping[str, Any] = field(default_factory=dict)
    train_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_demo(cls, kit: TaskKit, attack: str | None = None) -> Self:
        """The kit's own demonstration, with another attack where one is named."""
        demo = kit.demo
        return cls(
            demo.data,
            demo.model,
            attack or demo.attack,
            data_options=demo.data_options,
            model_options=demo.model_options,
            attack_options=demo.attack_options if attack in (None, demo.attack) else {},
            train_options=demo.train_options,
        )

    def check(self, kit: TaskKit) -> None:
        """Refuse names that the kit does not have.

        Raises:
            UnknownName: It has no such data set or attack.
        """
        if self.data not in kit.data:
            raise unknown("data set", self.data, kit.data)
        if self.attack is not None and self.attack not in kit.attacks:
            raise unknown("attack", self.attack, kit.attacks)

    def read(self, kit: TaskKit, *, seed: int) -> Splits:
        """The plan's data."""
        return kit.data[self.data](seed=seed, **self.data_options)

    def make_attack(self, kit: TaskKit, data: Splits) -> Attack | None:
        """The plan's attack on ``data``; None where there is none."""
        return None if self.attack is None else kit.attack(self.attack, data, **self.attack_options)

    def build(self, kit: TaskKit, data: Splits, *, seed: int, device: torch.device | str = "cpu") -> nn.Module:
        """The plan's architecture with random weights, in eval mode, one output for each class of ``data``."""
        words = {"num_classes": len(data.classes), "seed": seed, **self.model_options}
        return kit.build(self.model, **words).to(device).eval()

    def train(
        self,
        kit: TaskKit,
        data: Splits,
        attack: Attack | None,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
    ) -> tuple[nn.Module, Task]:
        """Train the plan's model on ``data`` with ``attack``; gives it in eval mode, and its task.

        Raises:
            BadOption: An option cannot be used.
            NonFinite: The training broke down.
        """
        task = kit.task(**data.hints)
        model = self.build(kit, data, seed=seed, device=device)
        kit.train(model, data, task, attack, seed=seed, progress=progress, **self.train_options)
        return model.eval(), task

    def card(
        self, task: str, data: Splits, attack: Attack, figures: Mapping[str, float], *, seed: int, device: torch.device
    ) -> VictimCard:
        """What is written beside a victim of this plan.

        Args:
            task: Name under which the kit is installed.
            data: What it was trained and measured on.
            attack: With whatever it learned in `train`.
            figures: From `unbackdoor.evaluate`.
            seed: Of the training.
            device: Where it was trained.
        """
        return VictimCard(
            task=task,
            model=self.model,
            model_options={"num_classes": len(data.classes), **self.model_options},
            data=self.data,
            data_options=self.data_options,
            attack=attack.name,
            attack_options=attack.options(),
            train_options=self.train_options,
            seed=seed,
            figures=figures,
            versions=versions(device),
        )


@dataclass(frozen=True)
class Scene:
    """A victim, its task and its data."""

    kit: TaskKit
    task: Task
    data: Splits
    victim: Victim


def is_victim(path: str | Path) -> bool:
    """Whether ``path`` is a folder that `Victim.save` wrote."""
    return (Path(path) / "card.json").is_file()


def task_of_victim(folder: str | Path) -> str:
    """Name of the task that a victim is of.

    Raises:
        FileRefused: The folder holds no victim.
    """
    try:
        return str(json.loads((Path(folder) / "card.json").read_text(encoding="utf-8"))["task"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileRefused(
            f"{folder} holds no victim (no readable card.json); make one with: unbackdoor attack --out {folder}"
        ) from error


def open_victim(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    data_path: str | Path | None = None,
    task_options: Mapping[str, Any] | None = None,
) -> Scene:
    """A victim from its folder, with the data it was trained and tested on.

    Args:
        folder: What `Victim.save` wrote.
        device: Where its model goes.
        data_path: Where its data lie, if not where they were.
        task_options: Over what the data say of the task.

    Raises:
        FileRefused: The folder holds no victim, or its data are not where its card says.
        UnknownName: No installed package has its task, data set or attack.
    """
    kit = kit_of(task_of_victim(folder))
    victim = Victim.load(folder, kit)
    card = victim.card
    if card.data not in kit.data:
        raise unknown("data set", card.data, kit.data)
    moved = {} if data_path is None else {"path": str(data_path)}
    kept = {Path(name).stem: str(Path(folder) / name) for name in victim.files}
    data = kit.data[card.data](seed=card.seed, **{**card.data_options, **kept, **moved})
    victim.model.to(device)
    return Scene(kit, kit.task(**{**data.hints, **(task_options or {})}), data, victim)
