"""Victims that are stored with the tests: real attacks, trained on real data, in half precision."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

import unbackdoor
from unbackdoor.attacker.plan import open_victim
from unbackdoor.registry import method, method_names
from unbackdoor.testing import check_purifier
from unbackdoor_image import KIT

HERE = Path(__file__).resolve().parents[2] / "fixtures" / "victims"
DIGITS = sorted(path.parent.name for path in HERE.glob("digits/*/card.json"))
CIFAR = sorted(path.parent.name for path in HERE.glob("cifar10/*/card.json"))
DATA = os.environ.get("UNBACKDOOR_DATA", "")
TOLERANCE = 0.5  # percent: sums of another processor may turn a few of 449 answers


def test_there_are_victims_of_several_kinds() -> None:
    assert {"badnets", "blend", "lira", "badnets-all"} <= set(DIGITS)
    assert (HERE / "digits" / "benign" / "clean.json").is_file()


def test_stored_victims_are_small_and_of_half_precision() -> None:
    sizes = [path.stat().st_size for path in HERE.rglob("*") if path.is_file()]
    assert max(sizes) <= 2**20
    assert sum(sizes) <= 12 * 2**20
    for path in HERE.rglob("model.safetensors"):
        types = {value.dtype for value in safetensors.torch.load_file(path).values()}
        assert types <= {torch.float16, torch.int64}, path


@pytest.mark.parametrize("name", DIGITS)
def test_stored_victim_does_what_its_card_says(name: str) -> None:
    scene = open_victim(str(HERE / "digits" / name))
    scene.victim.check_health()
    found = unbackdoor.evaluate(scene.victim.model, scene.data.test, scene.task, scene.victim.attack)
    assert found == pytest.approx(dict(scene.victim.card.figures), abs=TOLERANCE)


def test_stored_clean_model_does_what_its_card_says() -> None:
    model, told = _clean()
    data = KIT.data[told["data"]](seed=told["seed"], **told["data_options"])
    found = unbackdoor.evaluate(model, data.test, KIT.task(**data.hints))
    assert found == pytest.approx(told["figures"], abs=TOLERANCE)


@pytest.mark.parametrize("name", method_names())
def test_method_keeps_its_promises_on_a_real_victim(name: str) -> None:
    scene = open_victim(HERE / "digits" / "blend")
    known = method(name).__dataclass_fields__
    wanted = {"steps": 2, "batch_size": 8}
    wanted |= {key: 2 for key in known if key.endswith("_steps")}
    short = {key: value for key, value in wanted.items() if key in known}
    check_purifier(method(name)(**short), scene.victim.model, scene.data.clean[slice(0, 24)], scene.task, again=False)


def test_batchnorm_alone_leaves_a_real_backdoor_in() -> None:
    scene = open_victim(HERE / "digits" / "blend")
    purified, _ = unbackdoor.purify(scene.victim.model, scene.data.clean, task=scene.task, method="bn-only")
    after = unbackdoor.evaluate(purified, scene.data.test, scene.task, scene.victim.attack)
    assert after["asr"] >= 80


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="UNBACKDOOR_DATA names no folder with the Parquet files of CIFAR-10")
@pytest.mark.parametrize("name", CIFAR)
def test_stored_victim_of_natural_images_does_what_its_card_says(name: str) -> None:
    scene = open_victim(HERE / "cifar10" / name, data_path=DATA)
    found = unbackdoor.evaluate(scene.victim.model, scene.data.test, scene.task, scene.victim.attack)
    assert found == pytest.approx(dict(scene.victim.card.figures), abs=TOLERANCE)


def _clean() -> tuple[torch.nn.Module, dict]:
    folder = HERE / "digits" / "benign"
    told = json.loads((folder / "clean.json").read_text(encoding="utf-8"))
    model = KIT.build(told["model"], **told["model_options"])
    unbackdoor.load(model, folder / "model.safetensors")
    return model.eval(), told
