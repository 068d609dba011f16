"""A backdoored model with its attack in one folder: enough to make its poisoned test set again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import safetensors.torch
from torch import Tensor, nn

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.attacker.kit import TaskKit
from unbackdoor.attacker.vetting import TRUST, check_options, fetching, words_of_a_card
from unbackdoor.attacker.victim_card import (
    ATTACK,
    CARD,
    MODEL,
    NO_ATTACK,
    VictimCard,
    card_text,
    check_unchanged,
    intact_file,
    read_card,
    signed,
    told,
)
from unbackdoor.checkpoint import load, save
from unbackdoor.errors import BadData, FileRefused, NonFinite, UnbackdoorError, UnhealthyAttack, UntrustedVictim
from unbackdoor.files.memory_budget import at_most
from unbackdoor.files.reading import limits, reading
from unbackdoor.files.writing import write_together
from unbackdoor.registry import unknown
from unbackdoor.report import weight_hash

__all__ = ["Victim", "VictimCard", "architecture", "naming"]

_ROOM = 2**30
_TIMES = 16
_TENSORS = 10_000


@dataclass(frozen=True)
class Victim:
    """A backdoored model, its card, its attack, and what its data need to be read again (`Splits.files`).

    A benign model, made to see that a purification does no harm, is one too: its attack is None, and its card's
    ``"none"``.
    """

    model: nn.Module
    attack: Attack | None
    card: VictimCard
    files: Mapping[str, bytes] = field(default_factory=dict)

    def check_health(self, floor: HealthFloor | None = None) -> None:
        """Refuse a victim below its attack's floor, or below ``floor``; of a benign model the clean score alone counts.

        Raises:
            UnhealthyAttack: Says which figure is below which floor.
        """
        clean = next(iter(self.card.figures.values()))
        if self.attack is None:
            least = (floor or Attack.health).clean
            if not clean >= least:
                raise UnhealthyAttack(
                    f"the benign model has a clean score of {clean:.1f}; at least {least:.1f} are needed to prove "
                    "anything. Train longer or change the seed."
                )
            return
        asr = self.card.figures["asr"]
        floor = floor or self.attack.health
        if self.attack.all_to_all:  # its success is capped by the clean score, see AllToAll
            floor = HealthFloor(floor.clean, min(floor.asr, 0.9 * clean))
        if not (clean >= floor.clean and asr >= floor.asr):  # so that NaN is refused too
            raise UnhealthyAttack(
                f"the {self.card.attack} victim has a clean score of {clean:.1f} and an ASR of {asr:.1f}; "
                f"at least {floor.clean:.1f} and {floor.asr:.1f} are needed to prove anything. Train longer, raise the "
                "poison rate or change the seed."
            )

    def save(self, folder: str | Path, *, force: bool = False, floor: HealthFloor | None = None) -> None:
        """Write ``model.safetensors``, ``attack.safetensors``, `files` and ``card.json`` into ``folder``.

        The card gets the SHA-256 of every file and of itself, without which `load` refuses it.

        Raises:
            FileRefused: The folder holds a victim already and ``force`` is off.
            UnhealthyAttack: See `check_health`.
        """
        self.check_health(floor)
        folder = Path(folder)
        hashes: dict[str, str] = {}
        learned = {} if self.attack is None else self.attack.state()
        state = {name: value.detach().cpu().contiguous() for name, value in learned.items()}
        contents = {ATTACK: safetensors.torch.save(state), **self.files}

        def write_model(path: Path) -> None:
            save(self.model, path, force=True)
            hashes[MODEL] = hashlib.sha256(path.read_bytes()).hexdigest()

        def write(path: Path, name: str) -> None:
            path.write_bytes(contents[name])
            hashes[name] = hashlib.sha256(contents[name]).hexdigest()

        def write_card(path: Path) -> None:
            card = replace(self.card, hash=weight_hash(self.model), data_files=tuple(sorted(self.files)))
            path.write_text(card_text(signed(card, hashes)), encoding="utf-8")

        writes: dict[Path, Callable[[Path], object]] = {folder / MODEL: write_model}
        writes |= {folder / name: partial(write, name=name) for name in contents}
        writes[folder / CARD] = write_card
        write_together(writes, force=force)

    @classmethod
    def load(cls, folder: str | Path, kit: TaskKit, *, trust: bool = False) -> Self:
        """Read a victim that `save` wrote; ``kit`` builds its model and its attack.

        A folder may come from anybody, so it is data: its files are regular files in it with the hashes that its card
        names, and the card names a model and an attack of ``kit`` with options that take no file and fetch nothing.

        Args:
            folder: The victim's.
            kit: Of its task.
            trust: Whether the card may name a model of the user's own code (``module:function``), and options that name
                files. What would be downloaded and files with other hashes are refused all the same.

        Raises:
            FileRefused: The folder holds no victim, or its files are not those that the card names.
            UntrustedVictim: The card asks for what only ``trust`` allows.
            UnbackdoorError: Something in it cannot be used; the message names it.
        """
        folder = Path(folder)
        card = read_card(folder)
        with naming(folder):
            if card.attack != NO_ATTACK and card.attack not in kit.attacks:
                raise unknown("attack", card.attack, kit.attacks)
            check_unchanged(folder, card)
            files = {}
            for name in (MODEL, ATTACK, *card.data_files):
                path = intact_file(folder, name, card)
                if name != MODEL:
                    with reading(path, "make the victim again"):
                        files[name] = path.read_bytes()
            content = files.pop(ATTACK)
            kind = None if card.attack == NO_ATTACK else kit.attacks[card.attack]
            attack = None if kind is None else _attack(card, kind, content, trust=trust)
            model = _model(folder, card, kit, trust=trust)
        return cls(model.eval(), attack, card, files)


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Errors of ours say which victim they are about."""
    try:
        yield
    except UnbackdoorError as error:
        if str(folder) not in str(error):
            error.args = (f"{folder}: {error}",)
        raise


def _model(folder: Path, card: VictimCard, kit: TaskKit, *, trust: bool) -> nn.Module:
    """The card's architecture with the folder's weights; no larger than a model of these weights can be."""
    path = folder / MODEL
    room = limits().memory if trust else min(limits().memory, _ROOM + _TIMES * path.stat().st_size)
    what = f"{CARD} (the model {told(card.model)} with its model_options)"
    count = None if trust else _TENSORS + _TIMES * _tensors_in(path)
    with reading(what, "make the victim again"), at_most(room, what, count=count):
        model = architecture(card, kit, trust=trust)
    with reading(path, "make the victim again"):
        load(model, path)
    if weight_hash(model) != card.hash:
        raise FileRefused(f"{path} is not the model that {CARD} describes; make it again.")
    return model


def architecture(card: VictimCard, kit: TaskKit, *, trust: bool = False, **options: Any) -> nn.Module:
    """The model that a card names, with random weights; ``options`` come over those of the card.

    Raises:
        UntrustedVictim: The card asks for code, weights or files from elsewhere.
        UnbackdoorError: It cannot be built.
    """
    words = {**card.model_options, **options}
    forbidden = fetching(words)
    if forbidden:
        raise UntrustedVictim(
            f"{CARD} (model_options): {forbidden[0]} would load weights or fetch files, which no card may; the "
            f"weights of a victim are its {MODEL}. Make it again without that option."
        )
    if not trust and ":" in card.model and card.model not in kit.models:
        sources = {name.partition(":")[0] for name in kit.models if ":" in name}
        if card.model.partition(":")[0] not in sources:
            raise UntrustedVictim(
                f"{CARD} asks for the model {told(card.model)}, which is code outside the victim's folder; a card may "
                f"name {', '.join(sorted(kit.models))}. {TRUST}."
            )
    with words_of_a_card(trust=trust):
        return kit.build(card.model, **words)


def _tensors_in(path: Path) -> int:
    with reading(path, "make the victim again"), safetensors.safe_open(path, framework="pt") as file:
        return len(file.keys())


def _attack(card: VictimCard, kind: type[Attack], content: bytes, *, trust: bool) -> Attack:
    what = f"{CARD} (attack_options of {card.attack})"
    with reading(f"{what} with {ATTACK}", "make the victim again"):
        state = safetensors.torch.load(content)
        _check_state(state)
        if not trust:
            check_options(what, card.attack_options, kind, texts=kind.texts, free=True)
        room = min(limits().memory, _ROOM + _TIMES * len(content))
        with at_most(room, what), words_of_a_card(trust=trust):
            made = kind.restore(card.attack_options, state)
        for name in sorted(set(state) & set(card.attack_options)):
            if name not in made.state():  # an attack may learn what one of its options counts, under the same name
                raise BadData(f"{ATTACK} holds a tensor {told(name)}, an option in {CARD}; make the victim again.")
        return made


def _check_state(state: Mapping[str, Tensor]) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise NonFinite(f"the tensor {told(name)} in {ATTACK} holds NaN or infinity; make the victim again.")
