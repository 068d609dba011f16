"""A victim with everything that it was made with: its kit, its task and its data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unbackdoor.errors import FileRefused
from unbackdoor.kit import Splits, TaskKit
from unbackdoor.registry import kit as kit_of
from unbackdoor.registry import unknown
from unbackdoor.task import Task
from unbackdoor.victim import Victim

__all__ = ["Scene", "open_scene", "read_card"]


@dataclass(frozen=True)
class Scene:
    """A victim, its task and its data."""

    kit: TaskKit
    task: Task
    data: Splits
    victim: Victim


def read_card(folder: str | Path) -> dict[str, Any]:
    """A victim's ``card.json`` as it stands; nothing else of the folder is read.

    Raises:
        FileRefused: The folder holds no victim.
    """
    try:
        card = json.loads((Path(folder) / "card.json").read_text(encoding="utf-8"))
        str(card["task"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileRefused(
            f"{folder} holds no victim (no readable card.json); make one with: unbackdoor attack --out {folder}"
        ) from error
    return dict(card)


def open_scene(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    data_path: str | Path | None = None,
    task_options: Mapping[str, Any] | None = None,
) -> Scene:
    """A victim from its folder, with the data it was trained and tested on.

    Args:
        folder: What `Victim.save` wrote.
        device: Where the model goes.
        data_path: Where the data set lies, if not where it was.
        task_options: Over what the data say of the task.

    Raises:
        FileRefused: The folder holds no victim, or its data are not where its card says.
        UnknownName: Its task or its data set is not installed.
    """
    kit = kit_of(str(read_card(folder)["task"]))
    victim = Victim.load(folder, kit)
    card = victim.card
    if card.data not in kit.data:
        raise unknown("data set", card.data, kit.data)
    moved = {} if data_path is None else {"path": str(data_path)}
    data = kit.data[card.data](seed=card.seed, **{**card.data_options, **moved})
    victim.model.to(device)
    return Scene(kit, kit.task(**{**data.hints, **(task_options or {})}), data, victim)
