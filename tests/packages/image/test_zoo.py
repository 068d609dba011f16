"""The zoo: resumable, refuses what is under its floor, tries the next seed, names failures as failures."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from unbackdoor.victim import Victim
from unbackdoor_image import KIT

ROOT = Path(__file__).resolve().parents[3]
TEXT = """
[defaults]
data = "digits"
model = "smallcnn"
model_options = { in_channels = 1, width = 4 }
train_options = { epochs = 6, batch_size = 64 }
seeds = [0, 1]
floor = { acc = 70.0, asr = 50.0 }

[victim.blend]
attack = "blend"

[victim.weak]
attack = "badnets"
attack_options = { opacity = 0.01 }
floor = { acc = 70.0, asr = 90.0 }

[victim.wrong]
attack = "sig"
attack_options = { frequency = 4.0 }
"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    import sys

    spec = importlib.util.spec_from_file_location("zoo_tool", ROOT / "tools" / "zoo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["zoo_tool"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "zoo.toml").write_text(TEXT)
    return tmp_path / "zoo.toml"


def test_zoo_trains_refuses_retries_and_resumes(
    tool: ModuleType, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = tool.Zoo(tmp_path / "cache", None, torch.device("cpu"))
    healthy, weak, wrong = rows = [zoo.entry(recipe) for recipe in tool.recipes(file)]
    assert healthy["healthy"]
    assert len(healthy["tries"]) == 1
    assert not weak["healthy"]
    assert [one["seed"] for one in weak["tries"]] == [0, 1]
    assert "zero in every column" in wrong["error"]
    folders = {path.parent.name.partition("-")[0] for path in (tmp_path / "cache").glob("*/card.json")}
    assert folders == {"blend"}, "a victim under its floor must not be saved"
    (folder,) = (tmp_path / "cache").glob("blend-*")
    assert Victim.load(folder, KIT).card.figures["asr"] == pytest.approx(healthy["asr"], abs=0.01)
    shown = tool.table(rows)
    assert "**failed: under its floor**" in shown
    assert "| failed |" in shown
    monkeypatch.setattr(tool.Zoo, "_train", lambda *_: pytest.fail("trained what was done"))
    again = tool.Zoo(tmp_path / "cache", None, torch.device("cpu"))
    assert [again.entry(recipe) for recipe in tool.recipes(file)] == json.loads(json.dumps(rows))


def test_recipe_is_another_where_an_option_differs(tool: ModuleType, file: Path) -> None:
    first = {one.name: one.identity for one in tool.recipes(file)}
    file.write_text(TEXT.replace("opacity = 0.01", "opacity = 0.02"))
    second = {one.name: one.identity for one in tool.recipes(file)}
    assert first["blend"] == second["blend"]
    assert first["weak"] != second["weak"]


def test_all_to_all_floor_is_capped_by_the_clean_accuracy(tool: ModuleType) -> None:
    row = {"accuracy": 60.0, "asr": 55.0, "asr_ceiling": 60.0}
    assert tool._healthy(row, {"acc": 50.0, "asr": 90.0})
    assert not tool._healthy(row | {"asr": 50.0}, {"acc": 50.0, "asr": 90.0})


@pytest.mark.parametrize("name", ["zoo_small.toml", "zoo_paper.toml"])
def test_files_of_the_repository_name_things_that_exist(tool: ModuleType, name: str) -> None:
    recipes = tool.recipes(ROOT / "tools" / name)
    assert {recipe.values["attack"] for recipe in recipes} >= set(KIT.attacks)
    for recipe in recipes:
        values = recipe.values
        assert values["data"] in KIT.data
        assert values["model"] in KIT.models
        if values["attack"] != "none":
            KIT.attacks[values["attack"]](**values.get("attack_options", {}))
