"""Honest victims of every kit, cheaply: an untrained model of the demo with its attack, in the form that `save` writes.

Written here by hand and not by `Victim.save`, so that a hostile folder can be honest in all but one thing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from unbackdoor.attacker.plan import Plan
from unbackdoor.attacker.victim import VictimCard
from unbackdoor.registry import kit as kit_of
from unbackdoor.report import weight_hash

__all__ = ["Parts", "honest", "sign", "write"]

_SMALL: Mapping[str, Mapping[str, Any]] = {
    "multilabel": {"train_count": 200, "clean_count": 40, "test_count": 40},
    "video": {"clips": 120, "clean_count": 24},
    "pointcloud": {"count": 120, "clean_count": 24},
    "translation": {"count": 300, "test_count": 40, "clean_count": 40},
}
"""Data options that make the demo's data quick to read."""


@dataclass(frozen=True)
class Parts:
    """What a victim's folder holds: its card as a dictionary, and all other files."""

    card: Mapping[str, Any]
    files: Mapping[str, bytes]

    def changed(self, files: Mapping[str, bytes] | None = None, /, **card: Any) -> Parts:
        """With other fields in the card and other files; signed only when it is written."""
        return Parts({**self.card, **card}, {**self.files, **(files or {})})


@cache
def honest(task: str) -> Parts:
    """A victim that must open: the demo's untrained model and its attack."""
    kit = kit_of(task)
    plan = Plan.of_demo(kit)
    small = dict(_SMALL.get(task, {}))
    data = kit.data[plan.data](seed=0, **{**plan.data_options, **small})
    attack = plan.make_attack(kit, data)
    assert attack is not None
    attack.prepare(data.train, torch.Generator().manual_seed(0))
    attack.trigger(data.test[torch.arange(2)].inputs, torch.Generator().manual_seed(0))
    model = plan.build(kit, data, seed=0)
    weights = {name: value.clone().contiguous() for name, value in _untied(model).items()}
    state = {name: value.contiguous() for name, value in attack.state().items()}
    card = {
        "task": task,
        "model": plan.model,
        "model_options": {"num_classes": len(data.classes), **plan.model_options},
        "data": plan.data,
        "data_options": {**plan.data_options, **small},
        "attack": attack.name,
        "attack_options": json.loads(json.dumps(attack.options())),
        "train_options": dict(plan.train_options),
        "seed": 0,
        "figures": {"accuracy": 99.0, "asr": 99.0, "lcr": 0.0},
        "hash": weight_hash(model),
        "versions": {"torch": "2"},
        "data_files": sorted(data.files),
    }
    files = {
        "model.safetensors": safetensors.torch.save(weights),
        "attack.safetensors": safetensors.torch.save(state),
        **data.files,
    }
    return Parts(card, files)


def _untied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found, seen = {}, set()
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, torch.Tensor) and id(value) not in seen:
            seen.add(id(value))
            found[name] = value.detach()
    return found


def sign(card: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    """``card`` with the hashes of ``files`` and of itself, as whoever writes a card can always make them."""
    if "hashes" not in {field.name for field in fields(VictimCard)}:
        return dict(card)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    signed = {**card, "hashes": hashes}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":"))
    return {**signed, "hashes": {**hashes, "card.json": hashlib.sha256(text.encode()).hexdigest()}}


def write(folder: Path, parts: Parts) -> None:
    """The victim's folder with a signed card."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in parts.files.items():
        (folder / name).write_bytes(content)
    kept = parts.card.get("data_files")
    named = ["model.safetensors", "attack.safetensors", *(kept if isinstance(kept, list) else ())]
    files = {name: parts.files[name] for name in named if isinstance(name, str) and name in parts.files}
    (folder / "card.json").write_text(json.dumps(sign(parts.card, files), indent=2), encoding="utf-8")
