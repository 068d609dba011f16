from __future__ import annotations

import json

import pytest


def test_evaluate_of_a_victim_gives_the_figures_of_its_card(call, victim):
    figures = call("evaluate", victim, "--json").json["figures"]
    assert figures == pytest.approx(json.loads((victim / "card.json").read_text())["figures"], abs=1e-3)


def test_evaluate_against_a_victim_uses_its_trigger_and_test_data(call, victim):
    payload = call("evaluate", victim / "model.safetensors", "--attack-from", victim, "--json").json
    assert payload["figures"] == call("evaluate", victim, "--json").json["figures"]
    assert payload["asr"] == "measured"


def test_evaluate_of_a_purified_checkpoint_agrees_with_purify(call, victim):
    purified = call("purify", victim, "--method", "ft", "--steps", 5, "--out", "p.safetensors", "--json").json
    assert call("evaluate", "p.safetensors", "--attack-from", victim, "--json").json["figures"] == purified["after"]


def test_evaluate_shows_a_table(call, victim):
    result = call("evaluate", victim)
    assert result.code == 0
    assert "attack success rate (ASR)" in result.out


def test_evaluate_of_a_victim_refuses_another_model(call, victim):
    assert "leave --model out" in call("evaluate", victim, "--model", "mlp").error


def test_evaluate_refuses_a_folder_that_is_no_victim(call, folder):
    (folder / "empty").mkdir()
    assert "card.json" in call("evaluate", "empty").error


def test_evaluate_refuses_a_victim_with_other_weights(call, victim):
    from safetensors.torch import load_file, save_file

    tensors = load_file(victim / "model.safetensors")
    tensors["0.weight"] += 1
    save_file(tensors, victim / "model.safetensors")
    assert "card.json describes" in call("evaluate", victim).error


def test_evaluate_refuses_an_unknown_device(call, victim):
    assert "device 'abacus'" in call("evaluate", victim, "--device", "abacus").error
