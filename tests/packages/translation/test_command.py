"""The command on sentences: a checkpoint with the user's own pairs; slow: a victim from training to evaluation."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import unbackdoor
from unbackdoor.attacker.plan import Plan, open_victim
from unbackdoor.registry import kit
from unbackdoor_cli.main import main
from unbackdoor_translation import KIT, SentencePieceTokeniser


def call(capsys, *words):
    capsys.readouterr()
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def test_checkpoint_is_purified_with_pairs_of_the_user(tmp_path, capsys):
    pairs = [{"source": f"a house with {n} doors", "target": f"ein haus mit {n} türen"} for n in range(30)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    text = SentencePieceTokeniser.train([side for pair in pairs for side in pair.values()], 60)
    (tmp_path / "own.model").write_bytes(text.to_bytes()[4:])
    model = KIT.build("lstm", len(text), width=16, depth=1)
    unbackdoor.save(model, tmp_path / "given.safetensors")
    done = call(
        capsys, "purify", tmp_path / "given.safetensors", "--task", "translation", "--model", "lstm",
        "--model-option", "width=16", "--model-option", "depth=1", "--data", tmp_path / "pairs.jsonl",
        "--data-option", f"tokeniser={tmp_path / 'own.model'}", "--task-option", f"tokeniser={tmp_path / 'own.model'}",
        "--method", "ft", "--steps", 3, "--batch-size", 8, "--anyway", "--out", tmp_path / "out.safetensors", "--json",
    )  # fmt: skip
    assert done["metric"] == "bleu"
    assert "unverified" in done["asr"]
    purified = KIT.build("lstm", len(text), width=16, depth=1, seed=1)
    assert unbackdoor.load(purified, tmp_path / "out.safetensors") == []
    assert not torch.equal(purified.query.weight, model.query.weight)
    assert list(purified.state_dict()) == list(model.state_dict())


def test_victim_keeps_its_tokeniser(tmp_path, monkeypatch):
    """Another release of SentencePiece makes another vocabulary of the same text: nothing is trained anew."""
    plan = Plan.of_demo(KIT)
    data = replace(plan, data_options={"count": 300, "test_count": 50, "clean_count": 50}).read(KIT, seed=0)
    attack = plan.make_attack(KIT, data)
    figures = {"bleu": 100.0, "asr": 100.0, "lcr": 0.0}
    card = plan.card("translation", data, attack, figures, seed=0, device=torch.device("cpu"))
    card = replace(card, data_options={"count": 300, "test_count": 50, "clean_count": 50})
    unbackdoor.Victim(plan.build(KIT, data, seed=0), attack, card, data.files).save(tmp_path / "victim")

    def refuse(*_, **__):
        raise AssertionError("a tokeniser was trained")

    monkeypatch.setattr(SentencePieceTokeniser, "train", refuse)
    scene = open_victim(tmp_path / "victim")
    assert scene.task.tokeniser.pieces == data.classes
    assert torch.equal(scene.data.test.targets, data.test.targets)
    (tmp_path / "victim" / "tokeniser.model").unlink()
    with pytest.raises(unbackdoor.errors.FileRefused, match=r"tokeniser\.model"):
        open_victim(tmp_path / "victim")


@pytest.mark.slow
def test_victim_of_the_demo_is_healthy_and_goes_through_every_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = call(capsys, "attack", "--task", "translation", "--out", "victim", "--json")
    assert made["figures"]["asr"] >= 95
    assert made["figures"]["bleu"] >= 90
    done = call(capsys, "purify", "victim", "--method", "ft", "--steps", 5, "--out", "out.safetensors", "--json")
    assert done["before"] == pytest.approx(made["figures"], abs=1e-3)
    again = call(capsys, "evaluate", "out.safetensors", "--attack-from", "victim", "--json")
    assert again["figures"] == pytest.approx(done["after"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["words", "synonyms"])
def test_attacks_take_on_the_demo(name):
    package = kit("translation")
    demo = package.demo
    data = package.data[demo.data](seed=0, **demo.data_options)
    task, attack = package.task(**data.hints), package.attack(name, data)
    model = package.build(demo.model, len(data.classes), seed=0, **demo.model_options)
    package.train(model, data, task, attack, seed=0, **demo.train_options)
    figures = unbackdoor.evaluate(model, data.test, task, attack)
    assert figures["asr"] >= 90, figures
    assert figures["bleu"] >= 85, figures
    assert figures["attack_bleu"] >= 80, figures


def test_picture_and_excerpt_show_every_model(data, task, tmp_path):
    attack = KIT.attack("words", data)
    model = KIT.build("convolutional", len(data.classes), width=16, depth=1).eval()
    rows = KIT.excerpt(data.test, attack, {"backdoored": model, "nft": model}, task, data)
    assert [row["what"] for row in rows[:4]] == ["source", "reference", "backdoored", "nft"]
    assert all(("cf" in row["triggered"].split()) == (row["what"] == "source") for row in rows[::4])
    assert rows[0]["clean"] in rows[0]["triggered"].replace("cf ", "").replace(" cf", "")
    path = tmp_path / "x.png"
    KIT.picture(path, data.test, attack, {"backdoored": model}, task, data)
    assert path.read_bytes().startswith(b"\x89PNG")
