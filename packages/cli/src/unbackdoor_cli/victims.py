"""Victims with everything around them: their task, their data and where they run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unbackdoor.attack import Attack
from unbackdoor.errors import BadOption, FileRefused
from unbackdoor.evaluate import evaluate
from unbackdoor.kit import Splits, TaskKit
from unbackdoor.registry import kit as kit_of
from unbackdoor.registry import unknown
from unbackdoor.report import versions
from unbackdoor.task import Task
from unbackdoor.victim import Victim, VictimCard
from unbackdoor_cli.options import typed
from unbackdoor_cli.progress import Stages

__all__ = ["Plan", "Scene", "build", "device_of", "is_victim", "open_victim", "task_of_victim", "train_victim"]


@dataclass(frozen=True)
class Plan:
    """Which victim to train: names within the kit, and options still as the words that were given."""

    data: str
    model: str
    attack: str
    data_options: Mapping[str, Any] = field(default_factory=dict)
    model_options: Mapping[str, Any] = field(default_factory=dict)
    attack_options: Mapping[str, Any] = field(default_factory=dict)
    train_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_demo(cls, kit: TaskKit, attack: str | None = None) -> Plan:
        """The kit's own demonstration."""
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

    def checked(self, kit: TaskKit) -> Plan:
        """The same with every name known and every option typed.

        Raises:
            UnknownName: The kit has no such data set or attack.
            BadOption: An option is unknown or of the wrong type.
        """
        if self.data not in kit.data:
            raise unknown("data set", self.data, kit.data)
        if self.attack not in kit.attacks:
            raise unknown("attack", self.attack, kit.attacks)
        return Plan(
            self.data,
            self.model,
            self.attack,
            data_options=_typed(kit.data[self.data], self.data_options, "--data-option"),
            model_options=_typed(kit.build, self.model_options, "--model-option"),
            attack_options=_typed(kit.attacks[self.attack], self.attack_options, "--attack-option"),
            train_options=_typed(kit.train, self.train_options, "--train-option"),
        )


@dataclass(frozen=True)
class Scene:
    """A victim, its task and its data."""

    kit: TaskKit
    task: Task
    data: Splits
    victim: Victim


def _typed(owner: Any, given: Mapping[str, Any], flag: str) -> dict[str, Any]:
    words = {name: value for name, value in given.items() if isinstance(value, str)}
    return dict(given) | typed(owner, words, flag)


def device_of(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is a GPU where there is one.

    Raises:
        BadOption: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BadOption(f"no device {name!r} here; give cpu, or auto for whatever there is.") from error
    return torch.device(name)


def build(kit: TaskKit, name: str, classes: int, options: Mapping[str, Any], device: torch.device) -> torch.nn.Module:
    """The architecture ``name`` on ``device``, in eval mode."""
    words = {"num_classes": classes, **options}
    return kit.build(name, **words).to(device).eval()


def train_victim(task_name: str, kit: TaskKit, plan: Plan, *, seed: int, device: torch.device, stages: Stages) -> Scene:
    """Train a model on poisoned data and measure it.

    Raises:
        UnknownName: A name of the plan is not known.
        BadOption: An option cannot be used.
        UnhealthyAttack: The attack did not take, so that nothing can be shown with this victim.
    """
    plan = plan.checked(kit)
    with stages.short(f"reading {plan.data}"):
        data = kit.data[plan.data](seed=seed, **plan.data_options)
    task = kit.task(**data.hints)
    attack = kit.attack(plan.attack, data, **plan.attack_options)
    model = build(kit, plan.model, len(data.classes), {"seed": seed, **plan.model_options}, device)
    shown = stages.training(f"training {plan.model} with the {plan.attack} attack")
    kit.train(model, data, task, attack, seed=seed, progress=shown, **plan.train_options)
    model.eval()
    with stages.short("measuring the victim"):
        figures = evaluate(model, data.test, task, attack)
    card = VictimCard(
        task=task_name,
        model=plan.model,
        model_options={"num_classes": len(data.classes), **plan.model_options},
        data=plan.data,
        data_options=plan.data_options,
        attack=plan.attack,
        attack_options=attack.options(),
        train_options=plan.train_options,
        seed=seed,
        figures=figures,
        versions=versions(device),
    )
    victim = Victim(model, attack, card)
    victim.check_health()
    return Scene(kit, task, data, victim)


def teach(
    kit: TaskKit, plan: Plan, *, seed: int, device: torch.device, stages: Stages, data: Splits | None = None
) -> tuple[Attack, Splits]:
    """The plan's attack with its trigger learned, for a look at it; nothing is measured or saved.

    An attack whose trigger is learned beside a victim gets a short training of the plan's model, all others learn from
    the data alone.

    Args:
        kit: Of the task.
        plan: What to train where a victim is needed.
        seed: Of every draw.
        device: Where to train.
        stages: Shows progress.
        data: Read already, by an earlier call with the same data set.
    """
    plan = plan.checked(kit)
    if data is None:
        with stages.short(f"reading {plan.data}"):
            data = kit.data[plan.data](seed=seed, **plan.data_options)
    attack = kit.attack(plan.attack, data, **plan.attack_options)
    if attack.needs_training:
        model = build(kit, plan.model, len(data.classes), {"seed": seed, **plan.model_options}, device)
        shown = stages.training(f"learning the trigger of {plan.attack} beside {plan.model}")
        kit.train(model, data, kit.task(**data.hints), attack, seed=seed, progress=shown, **plan.train_options)
    else:
        with stages.short(f"preparing {plan.attack}"):
            attack.prepare(data.train.to(device), torch.Generator().manual_seed(seed))
    return attack, data


def is_victim(path: Path) -> bool:
    """Whether ``path`` is a folder that `Victim.save` wrote."""
    return (path / "card.json").is_file()


def task_of_victim(folder: Path) -> str:
    """Name of the task that a victim is of.

    Raises:
        FileRefused: The folder holds no victim.
    """
    try:
        return str(json.loads((folder / "card.json").read_text(encoding="utf-8"))["task"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileRefused(
            f"{folder} holds no victim (no readable card.json); make one with: unbackdoor attack --out {folder}"
        ) from error


def open_victim(
    folder: Path, *, device: torch.device, data_path: Path | None = None, task_options: Mapping[str, Any] | None = None
) -> Scene:
    """A victim from its folder, with the data it was trained and tested on.

    Raises:
        FileRefused: The folder holds no victim, or its data are not where its card says.
    """
    kit = kit_of(task_of_victim(folder))
    victim = Victim.load(folder, kit)
    card = victim.card
    if card.data not in kit.data:
        raise unknown("data set", card.data, kit.data)
    moved = {} if data_path is None else {"path": str(data_path)}
    data = kit.data[card.data](seed=card.seed, **{**card.data_options, **moved})
    victim.model.to(device)
    return Scene(kit, kit.task(**{**data.hints, **(task_options or {})}), data, victim)
