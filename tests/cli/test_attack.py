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


@pytest.fixture
def benign(call, folder):
    payload = call("attack", "--task", "toy", "--attack", "none", "--out", "benign", "--json").json
    assert payload["attack"] == "none"
    assert list(payload["figures"]) == ["accuracy"]
    return folder / "benign"


def test_a_benign_model_is_a_victim_without_asr(call, benign):
    card = json.loads((benign / "card.json").read_text())
    assert (card["attack"], card["attack_options"]) == ("none", {})
    payload = call("evaluate", benign, "--json").json
    assert list(payload["figures"]) == ["accuracy"]
    assert payload["figures"] == pytest.approx(card["figures"])
    assert payload["asr"] == "no ASR: a benign model"
    purified = call("purify", benign, "--method", "ft", "--steps", 5, "--out", "p.safetensors", "--json").json
    assert list(purified["before"]) == list(purified["after"]) == ["accuracy"]
    again = call("evaluate", "p.safetensors", "--attack-from", benign, "--json").json
    assert again["figures"] == pytest.approx(purified["after"], abs=1e-3)


def test_a_comparison_on_a_benign_model_measures_the_drop_alone(call, benign, victim):
    words = ["--methods", "ft", "--option", "steps=5", "--device", "cpu", "--threads", 1, "--oracle", "--out", "c"]
    payload = call("compare", benign, victim, *words, "--json").json
    assert payload["cells"]["failed"] == payload["cells"]["refused"] == 0
    rows = [row for row in payload["rows"] if row["victim"] == "benign"]
    assert rows
    assert all(list(row["after"]) == ["accuracy"] for row in rows)
    shown = call("compare", benign, *words)
    assert shown.code == 0, shown.err
    table = (benign.parent / "c" / "table.md").read_text()
    line = next(line for line in table.splitlines() if line.startswith("| ft"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] != ""
    assert cells[2] != ""
    assert cells[3:8] == [""] * 5


@pytest.mark.parametrize("words", [["--rate", 0.1], ["--attack-option", "strength=1.0"]])
def test_a_benign_model_has_no_options_of_a_trigger(call, words):
    assert (
        "--attack none has no trigger"
        in call("attack", "--task", "toy", "--attack", "none", "--out", "b", *words).error
    )


def test_a_benign_model_has_nothing_poisoned_to_train_on(call, benign):
    assert (
        "nothing poisoned to train on"
        in call("train", "--defence", "abl", "--like", benign, "--out", "t.safetensors").error
    )


def test_a_card_of_a_benign_model_does_not_name_an_asr(call, benign):
    card = json.loads((benign / "card.json").read_text())
    (benign / "card.json").write_text(json.dumps({**card, "figures": {**card["figures"], "asr": 99.0}}))
    assert "does not fit the attack 'none'" in call("evaluate", benign).error
