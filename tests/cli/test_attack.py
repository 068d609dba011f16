from __future__ import annotations

import json

import pytest


def test_attack_writes_a_victim_with_its_card(call, folder):
    payload = call("attack", "--task", "toy", "--out", "victim", "--seed", 3, "--json").json
    card = json.loads((folder / "victim" / "card.json").read_text())
    assert sorted(path.name for path in (folder / "victim").iterdir()) == [
        "attack.safetensors",
        "card.json",
        "model.safetensors",
    ]
    assert (card["seed"], card["attack"], card["data"], card["model"]) == (3, "corner", "blobs", "mlp")
    assert card["figures"] == pytest.approx(payload["figures"], abs=1e-3)


def test_attack_takes_options_in_the_types_of_their_owners(call, folder):
    words = ["--data", "blobs", "--model", "mlp", "--rate", "0.2", "--epochs", "50"]
    words += ["--attack-option", "strength=0.9", "--data-option", "count=180", "--model-option", "width=8"]
    assert call("attack", "--task", "toy", "--out", "v", *words).code == 0
    card = json.loads((folder / "v" / "card.json").read_text())
    assert card["attack_options"]["strength"] == 0.9
    assert card["attack_options"]["rate"] == 0.2
    assert card["model_options"] == {"num_classes": 3, "width": 8}
    assert (card["data_options"], card["train_options"]) == ({"count": 180}, {"epochs": 50})


def test_attack_to_all_names_the_ceiling_of_its_success(call, folder):
    words = ["--rate", "0.4", "--epochs", "150", "--attack-option", "all_to_all=true", "--attack-option", "strength=2"]
    result = call("attack", "--task", "toy", "--out", "v", *words)
    assert result.code == 0, result.error
    clean = json.loads((folder / "v" / "card.json").read_text())["figures"]["accuracy"]
    told = f"accuracy {clean:.1f} is the ceiling of ASR"
    for shown in (result.out, call("evaluate", "v").out):
        assert told in " ".join(shown.split())
    assert call("attack", "--task", "toy", "--out", "w").code == 0
    assert "ceiling" not in call("evaluate", "w").out


@pytest.mark.parametrize(
    ("flag", "word", "told"),
    [
        ("--attack-option", "strngth=1", "did you mean strength?"),
        ("--data-option", "count=few", "it must be a whole number"),
        ("--train-option", "rate=1", "epochs"),
        ("--model-option", "width", "NAME=VALUE"),
    ],
)
def test_attack_refuses_an_option_that_nobody_has(call, flag, word, told):
    assert told in call("attack", "--task", "toy", "--out", "v", flag, word).error


def test_attack_refuses_an_unhealthy_victim_and_writes_nothing(call, folder):
    assert "ASR" in call("attack", "--task", "toy", "--out", "v", "--epochs", 1).error
    assert list(folder.iterdir()) == []


def test_attack_refuses_a_folder_with_a_victim_before_it_trains(call, victim, monkeypatch):
    monkeypatch.setattr("unbackdoor_cli.victims.train_victim", lambda *a, **k: pytest.fail("trained before it checked"))
    assert "--force" in call("attack", "--task", "toy", "--out", "victim").error


def test_attack_overwrites_with_force(call, victim):
    assert call("attack", "--task", "toy", "--out", "victim", "--seed", 1, "--force").code == 0
    assert json.loads((victim / "card.json").read_text())["seed"] == 1


def test_attack_wants_data_and_model_together(call):
    assert "go together" in call("attack", "--task", "toy", "--data", "blobs", "--out", "v").error


@pytest.mark.parametrize(("flag", "kind"), [("--attack", "attack"), ("--data", "data set")])
def test_attack_refuses_unknown_names(call, flag, kind):
    words = ["--data", "blobs", "--model", "mlp"] if flag == "--attack" else ["--model", "mlp"]
    assert f"no {kind} 'nonsense'" in call("attack", "--task", "toy", "--out", "v", *words, flag, "nonsense").error


def test_attack_wants_somewhere_to_write(call):
    assert "--out DIR" in call("attack", "--task", "toy").error


def test_preview_is_refused_where_a_task_draws_none(call, folder):
    assert "draws no previews" in call("attack", "--task", "toy", "--preview", "p.png").error
    assert not (folder / "p.png").exists()
