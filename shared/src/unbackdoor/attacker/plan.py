"""A victim with everything around it: how it is planned, trained, described, and opened again from its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Splits, TaskKit
from unbackdoor.attacker.vetting import TRUST, check_options, without_fetching, words_of_a_card
from unbackdoor.attacker.victim import Victim, VictimCard, architecture, naming
from unbackdoor.attacker.victim_card import ATTACK, CARD, NO_ATTACK, read_card, told
from unbackdoor.errors import BadData, BadOption, NonFinite, TooLarge, UnbackdoorError, UntrustedVictim
from unbackdoor.files.memory_budget import at_most
from unbackdoor.files.reading import limited, limits, reading
from unbackdoor.registry import kit as kit_of
from unbackdoor.registry import unknown
from unbackdoor.report import versions
from unbackdoor.task import Task
from unbackdoor.tree import Tree, leaves

__all__ = ["Plan", "Scene", "is_victim", "open_victim", "task_of_victim"]

_ENDLESS = 2**62
_ROOM = 2**31
_MADE = 100_000


@dataclass(frozen=True)
class Plan:
    """Which victim to train: names within a kit, and options for each.

    Attributes:
        data: Name of the data set.
        model: Name of the architecture.
        attack: Name of the attack; None for a benign model.
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
        """The kit's own demonstration, with another attack where one is named; ``"none"`` for a benign model."""
        demo = kit.demo
        return cls(
            demo.data,
            demo.model,
            None if attack == NO_ATTACK else attack or demo.attack,
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
        self._check_fit(model, data, task)
        kit.train(model, data, task, attack, seed=seed, progress=progress, **self.train_options)
        return model.eval(), task

    def _check_fit(self, model: nn.Module, data: Splits, task: Task) -> None:
        """Let the model answer two samples before it is trained.

        Raises:
            BadOption: It cannot: it is for samples of another form.
        """
        samples = data.test[torch.arange(min(2, len(data.test)))]
        samples = samples.to(next(iter(model.state_dict().values()), torch.empty(0)).device)
        try:
            with torch.no_grad():
                task.log_likelihood(task.forward(model, samples.inputs), samples.targets)
        except UnbackdoorError:
            raise
        except Exception as error:
            forms = ", ".join(str(tuple(one.shape[1:])) for one in leaves(samples.inputs))
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300].rstrip(".")
            raise BadOption(
                f"{self.model} cannot answer samples of {self.data}, which have the form {forms} ({reason}). Give "
                f"--model-option with what fits them, such as in_channels={leaves(samples.inputs)[0].shape[1]}, or "
                "another model."
            ) from error

    def card(
        self,
        task: str,
        data: Splits,
        attack: Attack | None,
        figures: Mapping[str, float],
        *,
        seed: int,
        device: torch.device,
    ) -> VictimCard:
        """What is written beside a victim of this plan.

        Args:
            task: Name under which the kit is installed.
            data: What it was trained and measured on.
            attack: With whatever it learned in `train`; None for a benign model.
            figures: From `unbackdoor.evaluate`.
            seed: Of the training.
            device: Where it was trained.
        """
        return VictimCard(
            task=task,
            model=self.model,
            model_options={"num_classes": len(data.classes), **without_fetching(self.model_options)},
            data=self.data,
            data_options=self.data_options,
            attack=NO_ATTACK if attack is None else attack.name,
            attack_options={} if attack is None else attack.options(),
            train_options=self.train_options,
            seed=seed,
            figures=figures,
            versions=versions(device),
        )


@dataclass(frozen=True)
class Scene:
    """A victim, its task and its data; ``trust`` is what `open_victim` was told."""

    kit: TaskKit
    task: Task
    data: Splits
    victim: Victim
    trust: bool = False

    def build(self, **options: Any) -> nn.Module:
        """The victim's architecture anew, with random weights; ``options``, such as ``seed``, come over its own.

        Raises:
            UnbackdoorError: It cannot be built with them.
        """
        return architecture(self.victim.card, self.kit, trust=self.trust, **options)


def is_victim(path: str | Path) -> bool:
    """Whether ``path`` is a folder with a victim's card, good or bad."""
    return os.path.lexists(os.path.join(path, CARD))  # noqa: PTH118 - a name that no path can have is none


def task_of_victim(folder: str | Path) -> str:
    """Name of the task that a victim is of.

    Raises:
        FileRefused: The folder holds no victim.
        BadData: Its card cannot be read.
    """
    return read_card(folder).task


def open_victim(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    data_path: str | Path | None = None,
    task_options: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> Scene:
    """A victim from its folder, with the data it was trained and tested on.

    The folder may come from anybody. Its card is read as data: it names no code, fetches nothing, and no file outside
    the folder is read or written for it. Data that a package does not make itself lie where ``data_path`` says.

    Args:
        folder: What `Victim.save` wrote.
        device: Where its model goes.
        data_path: Where its data lie; needed for all but the data that packages make themselves.
        task_options: Over what the data say of the task.
        trust: Whether the card may also name a model of the user's own code (``module:function``) and files anywhere,
            as one's own victims do. Nothing is downloaded for it, and files must have the card's hashes all the same.

    Raises:
        FileRefused: The folder holds no victim, or its files are not those of its card.
        UntrustedVictim: The card asks for what only ``trust`` or ``data_path`` allows.
        UnknownName: No installed package has its task, data set or attack.
        UnbackdoorError: Something in it cannot be used; the message names it.
    """
    kit = kit_of(task_of_victim(folder))
    victim = Victim.load(folder, kit, trust=trust)
    with naming(Path(folder)):
        data = _data(Path(folder), victim, kit, data_path, trust=trust)
        task = kit.task(**{**data.hints, **(task_options or {})})
        _try(victim, data, task)
    victim.model.to(device)
    return Scene(kit, task, data, victim, trust)


def _data(folder: Path, victim: Victim, kit: TaskKit, data_path: str | Path | None, *, trust: bool) -> Splits:
    """What the card's loader gives, read from where the user says."""
    card = victim.card
    if card.data not in kit.data:
        raise unknown("data set", card.data, kit.data)
    loader, options = kit.data[card.data], dict(card.data_options)
    path = options.pop("path", None)
    if data_path is not None:
        path = str(data_path)
    elif not trust and path is not None:
        raise UntrustedVictim(
            f"{CARD} (data_options): the data lay at {told(path)}, and a card does not decide what is read on your "
            f"machine. Give --data-path (data_path=...) with where they lie. {TRUST}."
        )
    elif path is None and card.data not in ({kit.demo.data} if kit.offline is None else kit.offline):
        raise UntrustedVictim(
            f"{CARD} does not say where its data {told(card.data)} lie, and nothing is downloaded for a card. Fetch "
            "them and give --data-path (data_path=...)."
        )
    kept = {Path(name).stem: str(folder / name) for name in victim.files}
    strange = sorted(set(kept) - kit.files)
    if strange and not trust:
        raise UntrustedVictim(
            f"{CARD} (data_files): {told(strange[0])} is no file that {told(card.data)} keeps with a victim; known are "
            f"{', '.join(sorted(kit.files)) or 'none'}. {TRUST}."
        )
    options = {name: value for name, value in options.items() if name not in kept}
    what = f"{CARD} (data_options of {card.data})"
    if not trust:
        check_options(what, options, loader, texts=kit.texts, without=("seed", "path", *kit.files))
    own = frozenset() if data_path is None else frozenset({str(data_path)})
    made = path is None and not trust  # by the package, at the card's word alone
    large = [name for name, value in options.items() if isinstance(value, int) and abs(value) > _MADE]
    if made and large:
        raise TooLarge(
            f"{what}: {large[0]} is {options[large[0]]:,}; data that are made for a card hold {_MADE:,} of anything at "
            f"most. {TRUST}."
        )
    with (
        limited(memory=min(limits().memory, _ROOM)) if made else nullcontext(),
        reading(what, "give --data-path, or make the victim again"),
        at_most(4 * _ROOM if made else _ENDLESS, what, single=_ROOM if made else limits().memory),
        words_of_a_card(trust=trust, own=own),
    ):
        return loader(seed=card.seed, **options, **kept, **({} if path is None else {"path": path}))


def _try(victim: Victim, data: Splits, task: Task) -> None:
    """Put the trigger on two samples and ask the model: where parts of a victim do not fit, it shows here."""
    card, attack = victim.card, victim.attack
    samples = data.test[torch.arange(min(2, len(data.test)))]
    generator = torch.Generator().manual_seed(card.seed)
    with torch.no_grad(), at_most(limits().memory, f"{CARD} (the attack {card.attack})"):
        triggered, wanted = samples.inputs, samples.targets
        if attack is not None:
            with reading(f"{CARD} (attack_options) with {ATTACK}", "they do not fit the data; make the victim again"):
                triggered, wanted = attack.trigger(triggered, generator), attack.retarget(wanted)
            _check_alike(samples.inputs, triggered)
        if attack is not None and (wanted.shape != samples.targets.shape or int(wanted.max()) >= len(data.classes)):
            raise BadData(
                f"{CARD} (attack_options): the target is none of the {len(data.classes)} classes of the data."
            )
        with reading(f"{CARD} (model and data)", "the model cannot answer these data; make the victim again"):
            task.log_likelihood(task.forward(victim.model, triggered), samples.targets)


def _check_alike(given: Tree, triggered: Tree) -> None:
    before, after = leaves(given), leaves(triggered)
    alike = len(before) == len(after) and all(
        one.shape == other.shape and one.dtype == other.dtype for one, other in zip(before, after, strict=True)
    )
    if not alike:
        raise BadData(f"the trigger in {ATTACK} changes the form of samples; make the victim again.")
    if not all(one.isfinite().all() for one in after):
        raise NonFinite(f"the trigger in {ATTACK} makes samples NaN or infinite; make the victim again.")
