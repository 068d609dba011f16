"""The toy task package of the command line's tests, and victims of it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import unbackdoor
from unbackdoor.evaluate import evaluate
from unbackdoor.victim import VictimCard

TOY = Path(__file__).resolve().parents[2] / "cli" / "toy"


@pytest.fixture
def kit(monkeypatch):
    monkeypatch.syspath_prepend(TOY)
    return importlib.import_module("unbackdoor_toy").KIT


@pytest.fixture
def victims(kit, tmp_path):
    """Two folders of backdoored toys that differ in their seed."""
    return [make(kit, tmp_path / f"v{seed}", seed) for seed in (0, 1)]


def make(kit, folder, seed):
    data = kit.data["blobs"](seed=seed)
    task, attack = kit.task(**data.hints), kit.attack("corner", data)
    with torch.random.fork_rng(devices=[]):
        model = kit.build("mlp", num_classes=3)
    kit.train(model, data, task, attack, seed=seed)
    card = VictimCard(
        task="toy",
        model="mlp",
        model_options={"num_classes": 3},
        data="blobs",
        data_options={},
        attack="corner",
        attack_options=attack.options(),
        train_options={},
        seed=seed,
        figures=evaluate(model, data.test, task, attack),
    )
    unbackdoor.Victim(model, attack, card).save(folder)
    return folder
