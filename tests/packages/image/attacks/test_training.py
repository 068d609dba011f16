"""Every attack takes on the smallest real setting: digits, with the floors of ``tools/zoo_digits.toml``."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[4]
FILE = ROOT / "tools" / "zoo_digits.toml"


UNDER_ITS_FLOOR = {"dynamic-all": "ASR 78 on digits, where 87 is asked; docs/results/zoo_digits.md names it"}


def _names() -> list[Any]:
    import tomllib

    victims = tomllib.loads(FILE.read_text(encoding="utf-8"))["victim"]
    names = [name for name, values in victims.items() if values["attack"] != "none"]
    marks = {name: [pytest.mark.xfail(reason=reason)] for name, reason in UNDER_ITS_FLOOR.items()}
    return [pytest.param(name, marks=marks.get(name, [])) for name in names]


@pytest.fixture(scope="module")
def trainer(zoo_tool: ModuleType, tmp_path_factory: pytest.TempPathFactory):
    known = zoo_tool.recipes(FILE)
    zoo = zoo_tool.Zoo(tmp_path_factory.mktemp("zoo"), None, torch.device("cpu"), known)
    return lambda name: zoo.entry(next(one for one in known if one.name == name))


@pytest.mark.slow
@pytest.mark.parametrize("name", _names())
def test_attack_takes_and_leaves_the_clean_accuracy(name: str, trainer) -> None:
    row = trainer(name)
    assert row["healthy"], row
    assert row["drop"] <= 5
    if "covers" in row:  # what is nearly a trigger is none, for most samples
        assert row["covers"] >= 60, row
