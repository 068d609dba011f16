"""A backdoored model with its attack in one folder: enough to make its poisoned test set again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import safetensors.torch
from torch import nn

from unbackdoor.attack import Attack, HealthFloor
from unbackdoor.checkpoint import load, read, save
from unbackdoor.errors import FileRefused, UnhealthyAttack
from unbackdoor.kit import TaskKit
from unbackdoor.registry import unknown
from unbackdoor.report import weight_hash
from unbackdoor.writing import write_atomically

__all__ = ["Victim", "VictimCard"]


@dataclass(frozen=True, kw_only=True)
class VictimCard:
    """Where a victim comes from and what it does; stored as ``card.json``.

    ``figures`` holds the clean headline metric, ``asr`` and ``lcr`` on the test part, in percent; ``data_files`` names
    the files in the folder that reading the data again needs, see `Splits.files`.
    """

    task: str
    model: str
    model_options: Mapping[str, Any]
    data: str
    data_options: Mapping[str, Any]
    attack: str
    attack_options: Mapping[str, Any]
    train_options: Mapping[str, Any]
    seed: int
    figures: Mapping[str, float]
    hash: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    data_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Victim:
    """A backdoored model, its card, its attack, and what its data need to be read again (`Splits.files`)."""

    model: nn.Module
    attack: Attack
    card: VictimCard
    files: Mapping[str, bytes] = field(default_factory=dict)

    def check_health(self, floor: HealthFloor | None = None) -> None:
        """Refuse a victim below its attack's floor, or below ``floor``.

        Raises:
            UnhealthyAttack: Says which figure is below which floor.
        """
        clean, asr = next(iter(self.card.figures.values())), self.card.figures["asr"]
        floor = floor or self.attack.health
        if self.attack.all_to_all:  # its success is capped by the clean score, see AllToAll
            floor = HealthFloor(floor.clean, min(floor.asr, 0.9 * clean))
        if clean < floor.clean or asr < floor.asr:
            raise UnhealthyAttack(
                f"the {self.card.attack} victim has a clean score of {clean:.1f} and an ASR of {asr:.1f}; "
                f"at least {floor.clean:.1f} and {floor.asr:.1f} are needed to prove anything. Train longer, raise the "
                "poison rate or change the seed."
            )

    def save(self, folder: str | Path, *, force: bool = False, floor: HealthFloor | None = None) -> None:
        """Write ``model.safetensors``, ``attack.safetensors``, `files` and ``card.json`` into ``folder``.

        Raises:
            FileRefused: The folder holds a victim already and ``force`` is off.
            UnhealthyAttack: See `check_health`.
        """
        self.check_health(floor)
        folder = Path(folder)
        card = asdict(self.card) | {"hash": weight_hash(self.model), "data_files": sorted(self.files)}
        save(self.model, folder / "model.safetensors", force=force)
        state = {name: value.contiguous() for name, value in self.attack.state().items()}
        write_atomically(folder / "attack.safetensors", lambda p: safetensors.torch.save_file(state, p), force=force)
        for name, content in self.files.items():
            write_atomically(folder / name, partial(_write, content), force=force)
        text = json.dumps(card, indent=2) + "\n"
        write_atomically(folder / "card.json", lambda p: p.write_text(text, encoding="utf-8"), force=force)

    @classmethod
    def load(cls, folder: str | Path, kit: TaskKit) -> Self:
        """Read a victim that `save` wrote; ``kit`` builds its model and its attack.

        Raises:
            FileRefused: The folder holds no victim, or its weights are not those that the card names.
        """
        folder = Path(folder)
        path = folder / "card.json"
        if not path.is_file():
            raise FileRefused(f"{folder} holds no victim (no card.json); make one: unbackdoor attack --out {folder}")
        written = json.loads(path.read_text(encoding="utf-8"))
        card = VictimCard(**written | {"data_files": tuple(written.get("data_files", ()))})
        if card.attack not in kit.attacks:
            raise unknown("attack", card.attack, kit.attacks)
        model = kit.build(card.model, **card.model_options)
        load(model, folder / "model.safetensors")
        if card.hash and weight_hash(model) != card.hash:
            raise FileRefused(f"{folder}/model.safetensors is not the model that card.json describes; make it again.")
        state, _ = read(folder / "attack.safetensors")
        attack = kit.attacks[card.attack].restore(card.attack_options, state)
        try:
            files = {name: (folder / name).read_bytes() for name in (Path(n).name for n in card.data_files)}
        except OSError as error:
            raise FileRefused(
                f"{folder} lacks {error.filename}, which card.json names; make the victim again."
            ) from error
        return cls(model.eval(), attack, card, files)


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)
