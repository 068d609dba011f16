"""Attacks and methods of other packages are found as the library's own are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FURTHER = Path(__file__).parent / "further"


@pytest.fixture
def further(toy_path, monkeypatch):
    monkeypatch.syspath_prepend(FURTHER)


@pytest.mark.usefixtures("further")
def test_an_attack_of_another_package_is_listed_trained_and_measured(call, folder):
    listed = call("list", "attacks", "--json").json["attacks"]["toy"]
    assert listed["edge"].startswith("Set the first two features.")
    assert "cannot be imported" in listed["broken"]
    words = ["attack", "--task", "toy", "--attack", "edge", "--attack-option", "strength=3.0", "--out", "victim"]
    assert call(*words).code == 0
    card = json.loads((folder / "victim" / "card.json").read_text())
    assert (card["attack"], card["attack_options"]["strength"]) == ("edge", 3.0)
    assert call("evaluate", "victim", "--json").json["figures"]["asr"] >= 80
    quick = ["--methods", "ft", "--option", "steps=3", "--device", "cpu", "--threads", "1"]
    assert call("compare", "victim", *quick, "--out", "c", "--json").json["cells"]["done"] == 4


@pytest.mark.usefixtures("further")
def test_an_attack_that_cannot_be_imported_is_named_with_its_package(call):
    error = call("attack", "--task", "toy", "--attack", "broken", "--out", "v").error
    assert "unbackdoor-further" in error
    assert "NotThere" in error


@pytest.mark.usefixtures("further")
def test_the_card_of_a_method_in_a_single_module_is_made_from_it(call):
    card = call("card", "shrink").out
    assert "Multiply every weight." in card
    assert "what each weight is multiplied by" in card


@pytest.mark.usefixtures("further")
def test_a_ruined_model_is_not_written(call, victim, folder):
    words = ["purify", victim, "--method", "shrink", "--out", "p.safetensors"]
    result = call(*words)
    assert (result.code, result.out) == (3, ""), result.err
    assert "has lost" in result.err
    assert "--anyway" in result.err
    assert not list(folder.glob("p.*"))
    done = call(*words, "--anyway", "--json")
    assert done.json["overruled"]
    assert json.loads((folder / "p.report.json").read_text())["overruled"] == done.json["overruled"]


@pytest.mark.usefixtures("further")
def test_a_comparison_without_a_usable_result_ends_with_three(call, victim):
    words = ["compare", victim, "--methods", "shrink", "--device", "cpu", "--threads", "1", "--out", "c"]
    result = call(*words)
    assert result.code == 3, result.err
    assert "shrink, seed 0 not fit for use: the purified model has lost" in " ".join(result.out.split())
    assert call(*words, "--anyway").code == 0


def test_a_comparison_whose_methods_refuse_to_begin_ends_with_two(call, victim):
    words = ["compare", victim, "--methods", "ft", "--clean", 100000, "--device", "cpu", "--threads", "1", "--out", "c"]
    result = call(*words)
    assert result.code == 2, result.err
    assert "ft mixup=1.0, seed 0 refused: 100000 clean samples are asked for" in " ".join(result.out.split())
