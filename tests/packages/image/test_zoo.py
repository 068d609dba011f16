"""The zoo: resumable, refuses what is under its floor, tries the next seed, names failures as failures."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import safetensors.torch
import torch

from unbackdoor.attacker.plan import open_victim
from unbackdoor.attacker.victim import Victim
from unbackdoor.evaluate import evaluate
from unbackdoor_image import KIT
from unbackdoor_image.attacks.blend import Blend
from unbackdoor_image.train import RECIPES, Training

OTHERS = {"zoo_paper_gtsrb.toml": "gtsrb", "zoo_paper_tiny.toml": "tinyimagenet", "zoo_paper_imagenet.toml": "imagenet"}
FILES = ["zoo_small.toml", "zoo_paper.toml", "zoo_digits.toml", "zoo_families.toml", "zoo_rates.toml", *OTHERS]
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


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "zoo.toml").write_text(TEXT)
    return tmp_path / "zoo.toml"


def test_zoo_trains_refuses_retries_and_resumes(
    zoo_tool: ModuleType, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = zoo_tool.Zoo(tmp_path / "cache", None, torch.device("cpu"))
    healthy, weak, wrong = rows = [zoo.entry(recipe) for recipe in zoo_tool.recipes(file)]
    assert healthy["healthy"]
    assert len(healthy["tries"]) == 1
    assert not weak["healthy"]
    assert [one["seed"] for one in weak["tries"]] == [0, 1]
    assert "zero in every column" in wrong["error"]
    folders = {path.parent.name.partition("-")[0] for path in (tmp_path / "cache").glob("*/card.json")}
    assert folders == {"blend"}, "a victim under its floor must not be saved"
    (folder,) = (tmp_path / "cache").glob("blend-*")
    assert Victim.load(folder, KIT).card.figures["asr"] == pytest.approx(healthy["asr"], abs=0.01)
    shown = zoo_tool.table(rows)
    assert "**failed: under its floor**" in shown
    assert "| failed |" in shown
    monkeypatch.setattr(zoo_tool.Zoo, "_train", lambda *_: pytest.fail("trained what was done"))
    again = zoo_tool.Zoo(tmp_path / "cache", None, torch.device("cpu"))
    assert [again.entry(recipe) for recipe in zoo_tool.recipes(file)] == json.loads(json.dumps(rows))


def test_recipe_is_another_where_an_option_differs(zoo_tool: ModuleType, file: Path) -> None:
    first = {one.name: one.identity("") for one in zoo_tool.recipes(file)}
    file.write_text(TEXT.replace("opacity = 0.01", "opacity = 0.02"))
    second = {one.name: one.identity("") for one in zoo_tool.recipes(file)}
    assert first["blend"] == second["blend"]
    assert first["weak"] != second["weak"]


def _folders(zoo_tool: ModuleType, file: Path) -> dict[str, Path]:
    zoo = zoo_tool.Zoo(file.parent / "cache", None, torch.device("cpu"))
    return {one.name: zoo.folder(one) for one in zoo_tool.recipes(file) if one.name != "wrong"}


def test_victim_is_another_where_the_code_of_its_attack_differs(
    zoo_tool: ModuleType, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored victim was once taken for what the attack's new code would make."""
    first = _folders(zoo_tool, file)
    assert _folders(zoo_tool, file) == first
    formula = Blend._blended
    monkeypatch.setattr(Blend, "_blended", lambda self, images: 0.999 * formula(self, images))
    second = _folders(zoo_tool, file)
    assert second["blend"] != first["blend"]
    assert second["weak"] == first["weak"]


def test_victims_are_others_where_the_training_differs(
    zoo_tool: ModuleType, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _folders(zoo_tool, file)
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a: (step(self, *a), step(self, *a))[0])
    second = _folders(zoo_tool, file)
    assert all(second[name] != first[name] for name in first)


def test_victim_is_another_where_a_default_of_its_attack_differs(
    zoo_tool: ModuleType, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that a few steps do not show, such as how many steps are taken."""
    text = TEXT + '[victim.trojan]\nattack = "trojan"\n'
    file.write_text(text)
    first = _folders(zoo_tool, file)
    file.write_text(text + "attack_options = { helper_steps = 301 }\n")
    same, other = zoo_tool.recipes(file)[-1], zoo_tool.Zoo(file.parent, None, torch.device("cpu"))
    data = other.data(KIT, same, 0)
    without = {**same.values, "attack_options": {}}
    assert zoo_tool.behaviour(KIT, data, same.values, "none") != zoo_tool.behaviour(KIT, data, without, "none")
    assert _folders(zoo_tool, file)["trojan"] != first["trojan"]


def test_accuracy_far_under_the_clean_model_is_a_failure(zoo_tool: ModuleType, file: Path, tmp_path: Path) -> None:
    words = '[victim.blend]\nattack = "blend"\n'
    file.write_text(TEXT.replace(words, words + "floor = { acc = 70.0, asr = 50.0, drop = 5.0 }\n"))
    known = zoo_tool.recipes(file)
    zoo = zoo_tool.Zoo(tmp_path / "cache", None, torch.device("cpu"), known)
    with pytest.raises(SystemExit, match="no clean model"):
        zoo.entry(known[0])
    row = {"accuracy": 80.0, "asr": 100.0}
    for drop, healthy in ((5.0, True), (4.9, False)):
        zoo_tool._judge(row, {"acc": 50.0, "asr": 90.0, "drop": drop}, 85.0)
        assert row["drop"] == 5.0
        assert row["healthy"] is healthy


def test_fixture_is_a_victim_of_half_precision_whose_card_says_what_it_does(
    zoo_tool: ModuleType, file: Path, tmp_path: Path
) -> None:
    file.write_text(TEXT.partition("[victim.weak]")[0] + '[victim.benign]\nattack = "none"\n')
    known = zoo_tool.recipes(file)
    zoo = zoo_tool.Zoo(tmp_path / "cache", None, torch.device("cpu"), known)
    for recipe in known:
        zoo_tool.fixture(zoo, recipe, zoo.entry(recipe)["seed"], tmp_path / "fixtures" / recipe.name)
    scene = open_victim(tmp_path / "fixtures" / "blend")
    stored = safetensors.torch.load_file(tmp_path / "fixtures" / "blend" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16, torch.int64}
    found = evaluate(scene.victim.model, scene.data.test, scene.task, scene.victim.attack)
    assert found == scene.victim.card.figures
    told = json.loads((tmp_path / "fixtures" / "benign" / "clean.json").read_text())
    assert told["figures"]["accuracy"] > 70


def test_all_to_all_floor_is_capped_by_the_clean_accuracy(zoo_tool: ModuleType) -> None:
    row = {"accuracy": 60.0, "asr": 55.0, "asr_ceiling": 60.0}
    assert zoo_tool._healthy(row, {"acc": 50.0, "asr": 90.0})
    assert not zoo_tool._healthy(row | {"asr": 50.0}, {"acc": 50.0, "asr": 90.0})


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_repository_name_things_that_exist(zoo_tool: ModuleType, name: str) -> None:
    for recipe in zoo_tool.recipes(ROOT / "tools" / name):
        values = recipe.values
        assert values["data"] in KIT.data
        assert values["model"] in KIT.models or values["model"].startswith("torchvision:")
        if values["attack"] != "none":
            KIT.attacks[values["attack"]](**values.get("attack_options", {}))
            if "drop" in values["floor"]:
                known = zoo_tool.recipes(ROOT / "tools" / name)
                assert any(one.is_clean_form_of(recipe) for one in known), recipe.name


def test_files_of_the_repository_miss_no_attack(zoo_tool: ModuleType) -> None:
    found = {name: {one.values["attack"] for one in zoo_tool.recipes(ROOT / "tools" / name)} for name in FILES}
    assert found["zoo_paper.toml"] == {*KIT.attacks, "none"}
    beyond = {"lf", "adaptive-blend", "fip-adaptive", "combined", "color"}
    assert all(found[name] == {*KIT.attacks, "none"} - beyond for name in OTHERS)
    assert found["zoo_small.toml"] | found["zoo_digits.toml"] == {*KIT.attacks, "none"}


def _named(zoo_tool: ModuleType, name: str) -> dict[str, dict]:
    return {one.name: dict(one.values) for one in zoo_tool.recipes(ROOT / "tools" / name)}


@pytest.mark.parametrize(
    ("name", "data", "model", "clean", "rate", "epochs", "lr", "decay", "drop"),
    [
        ("zoo_paper.toml", "cifar10", "preactresnet18", 0.01, 0.1, 250, 0.01, 5e-4, 100),
        ("zoo_paper_gtsrb.toml", "gtsrb", "wideresnet16_1", 0.03, 0.1, 200, 0.01, 5e-4, 100),
        ("zoo_paper_tiny.toml", "tinyimagenet", "resnet34", 0.05, 0.05, 150, 0.005, 1e-4, 60),
        ("zoo_paper_imagenet.toml", "imagenet", "torchvision:resnet50", 0.03, 0.05, 200, 0.02, 1e-4, 75),
    ],
)
def test_files_of_the_papers_scale_say_what_fip_says(
    zoo_tool: ModuleType,
    name: str,
    data: str,
    model: str,
    clean: float,
    rate: float,
    epochs: int,
    lr: float,
    decay: float,
    drop: int,
) -> None:
    """Its A.3.1 and A.3.2: network, poison rates, clean fraction, recipe."""
    for victim, values in _named(zoo_tool, name).items():
        assert (values["data"], values["model"]) == (data, model)
        assert values["data_options"]["clean_share"] == clean
        if victim in OTHER_RATES or values["attack"] in ("none", "cba", "combined", "adaptive-blend"):
            continue
        attack = KIT.attacks[values["attack"]](**values.get("attack_options", {}))
        assert attack.rate == (0.8 if attack.clean_label else rate), victim
    recipe = values["train_options"].get("recipe", "paper")
    how = Training(recipe=recipe)
    assert (how.epochs, how.lr, how.weight_decay, how.batch_size) == (epochs, lr, decay, 128)
    assert RECIPES[recipe]["drop"] == drop


OTHER_RATES = {f"{a}-{r}" for a in ("badnets", "blend", "trojan") for r in ("0001", "001", "025", "035", "050")}


@pytest.mark.parametrize("name", ["zoo_paper.toml", "zoo_rates.toml"])
def test_poison_rates_of_table_eight_are_in_the_files(zoo_tool: ModuleType, name: str) -> None:
    found = _named(zoo_tool, name).values()
    rates = {(one["attack"], one.get("attack_options", {}).get("rate")) for one in found}
    assert rates >= {(attack, rate) for attack in ("badnets", "blend", "trojan") for rate in (0.25, 0.35, 0.5)}
    assert rates >= {("badnets", 0.001), ("badnets", 0.01), ("combined", 0.5)}
