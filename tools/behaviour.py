"""Names what today's code does to a victim, so that a stored one is not taken for what it would make.

The recipe itself is run on a few samples of its data for a few steps: the weights that come out, the attack's state and
what its trigger does are hashed. A change of the attack, of the training or of how data are read changes them; moving
code to another file or rewording a comment does not. It cannot see what happens in long trainings alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from unbackdoor.attacker.kit import Splits, TaskKit
from unbackdoor.errors import UnbackdoorError
from unbackdoor.task import Batch
from unbackdoor.tree import leaves

__all__ = ["behaviour"]

_SAMPLES, _BATCH = 256, 64
_SHORT = {"steps": 3, "helper_steps": 3, "detox_steps": 2, "pgd_steps": 2}


def behaviour(kit: TaskKit, data: Splits, values: Mapping[str, Any], benign: str) -> str:
    """Sixteen hexadecimal digits for what ``values``, a recipe, do to a few samples of ``data``.

    Args:
        kit: Of the task.
        data: The recipe's data set.
        values: With ``attack``, ``model`` and their options; the steps of what an attack learns are cut.
        benign: The name of no attack.
    """
    draw = torch.Generator().manual_seed(0)
    few = data.train[torch.randperm(len(data.train), generator=draw)[:_SAMPLES].sort().values]
    found = hashlib.sha256()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same sums in the same order on any number of cores
    try:
        attack = None
        if values["attack"] != benign:
            attack = kit.attack(values["attack"], data, **_short(kit, values))
            found.update(
                repr(sorted(kit.attack(values["attack"], data, **_options(values)).options().items())).encode()
            )
        classes = len(data.classes)
        model = kit.build(values["model"], num_classes=classes, seed=0, **values.get("model_options", {}))
        task = kit.task(**data.hints)
        train = {k: v for k, v in values.get("train_options", {}).items() if k not in ("samples", "epochs")}
        kit.train(model, replace(data, train=few), task, attack, seed=0, **{**train, "epochs": 1, "batch_size": _BATCH})
        for name, value in model.state_dict().items():
            _add(found, name, value)
        if attack is not None:
            _add_attack(found, attack, few)
    except UnbackdoorError as error:
        found.update(f"{type(error).__name__}: {error}".encode())
    finally:
        torch.set_num_threads(threads)
    return found.hexdigest()[:16]


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(values.get("attack_options", {}))


def _short(kit: TaskKit, values: Mapping[str, Any]) -> dict[str, Any]:
    """The attack's options with little to learn, and with at least a few of the few samples poisoned."""
    cls = kit.attacks[values["attack"]]
    given = _options(values)
    known = {f.name: f.default for f in fields(cls)}
    rate = float(given.get("rate", known["rate"]))
    return {**given, **{name: value for name, value in _SHORT.items() if name in known}, "rate": max(rate, 0.02)}


def _add_attack(found: Any, attack: Any, few: Batch) -> None:
    for name, value in sorted(attack.state().items()):
        _add(found, name, value)
    some = few[attack.counts(few.targets)]
    for place, leaf in enumerate(leaves(attack.trigger(some.inputs, torch.Generator().manual_seed(0)))):
        _add(found, f"trigger {place}", leaf)
    for place, leaf in enumerate(leaves(attack.retarget(some.targets))):
        _add(found, f"label {place}", leaf)


def _add(found: Any, name: str, value: Tensor) -> None:
    found.update(name.encode())
    found.update(value.detach().cpu().contiguous().numpy().tobytes())
