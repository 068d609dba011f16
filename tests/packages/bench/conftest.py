"""The toy task package of the command line's tests, and victims of it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import unbackdoor
from unbackdoor.attacker.plan import Plan
from unbackdoor.evaluate import evaluate

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
    plan = Plan.of_demo(kit)
    data = plan.read(kit, seed=seed)
    attack = plan.make_attack(kit, data)
    model, task = plan.train(kit, data, attack, seed=seed)
    figures = evaluate(model, data.test, task, attack)
    card = plan.card("toy", data, attack, figures, seed=seed, device=torch.device("cpu"))
    unbackdoor.Victim(model, attack, card).save(folder)
    return folder
