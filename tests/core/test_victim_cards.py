"""The closed form of a victim's card: damaged ones, what only trust opens, and what an own victim may hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hostile.traps import lay
from hostile.victims import honest, write
from hostile.watching import watched

from unbackdoor.attacker.plan import Plan, is_victim, open_victim, task_of_victim
from unbackdoor.attacker.victim import Victim
from unbackdoor.attacker.victim_card import read_card
from unbackdoor.errors import (
    BadData,
    BadOption,
    FileRefused,
    TooLarge,
    UnbackdoorError,
    UnhealthyAttack,
    UntrustedVictim,
)
from unbackdoor.files.memory_budget import at_most
from unbackdoor.registry import kit
from unbackdoor.testing import check_reader
from unbackdoor_cli.main import main

OWN = """
from torch import nn

def made(num_classes, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def card_of(place: Path) -> Path:
    write(place, honest("image"))
    return place / "card.json"


@pytest.mark.parametrize("count", [2000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_damaged_card_is_an_error_of_ours(count, tmp_path):
    path = card_of(tmp_path)
    check_reader(lambda path: read_card(path.parent), {"card.json": path.read_bytes()}, tmp_path, count=count)


def test_errors_name_the_card_and_the_field(tmp_path):
    path = card_of(tmp_path / "victim")
    card = json.loads(path.read_text())
    for field, value in [("seed", -1), ("figures", {}), ("data_files", ["../x"]), ("hashes", {}), ("model_options", 3)]:
        path.write_text(json.dumps({**card, field: value}))
        with pytest.raises(BadData, match=rf"victim/card\.json: the field '{field}'") as refusal:
            Victim.load(tmp_path / "victim", kit("image"))
        assert str(refusal.value).endswith(".")


def test_card_without_hashes_says_that_it_has_to_be_made_again(tmp_path):
    path = card_of(tmp_path / "victim")
    card = json.loads(path.read_text())
    del card["hashes"]
    path.write_text(json.dumps(card))
    with pytest.raises(BadData, match="as older versions wrote it, has to be made again"):
        open_victim(tmp_path / "victim", trust=True)


@pytest.mark.parametrize("name", ["model.safetensors", "attack.safetensors", "card.json"])
def test_trust_forgives_no_file_that_was_changed(name, tmp_path):
    path = card_of(tmp_path / "victim").with_name(name)
    if name == "card.json":
        path.write_text(path.read_text().replace('"epochs": 20', '"epochs": 21'))
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    for trust in (False, True):
        with pytest.raises(FileRefused, match=name.replace(".", r"\.")):
            open_victim(tmp_path / "victim", trust=trust)


def own_model(place: Path) -> Path:
    """A victim whose model is a function in the current directory."""
    (place / "my_model_of_a_card_test.py").write_text(OWN)
    parts = honest("image")
    from unbackdoor import save
    from unbackdoor.report import weight_hash

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    save(model, place / "own.safetensors")
    weights = (place / "own.safetensors").read_bytes()
    changed = parts.changed(
        {"model.safetensors": weights},
        model="my_model_of_a_card_test:made", model_options={"num_classes": 10}, hash=weight_hash(model),
    )  # fmt: skip
    write(place / "victim", changed)
    return place / "victim"


def test_model_of_the_users_own_code_opens_with_trust_alone(tmp_path, monkeypatch):
    folder = own_model(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UntrustedVictim, match=r"--trust \(trust=True\)"):
        open_victim(folder)
    scene = open_victim(folder, trust=True)
    assert isinstance(scene.build(seed=3)[1], torch.nn.Linear)


def test_trust_downloads_nothing_and_loads_no_foreign_weights(tmp_path, monkeypatch):
    lay(tmp_path)
    monkeypatch.chdir(tmp_path / "here")
    cases = [
        ("image", {"model": "timm:resnet18", "model_options": {"num_classes": 10, "pretrained": True}}),
        ("image", {"model": "torchvision:resnet18", "model_options": {"num_classes": 10, "weights": "DEFAULT"}}),
        ("image", {"data": "hub", "data_options": {"path": "evil/data"}}),
        ("image", {"data": "cifar10", "data_options": {}}),
        ("translation", {"model": "hub:evil/model"}),
        ("translation", {"model": f"hub:{tmp_path}/outside/repo", "model_options": {"trust_remote_code": True}}),
        ("translation", {"model": f"hub:{tmp_path}/outside/repo"}),
        ("translation", {"data_options": {"tokeniser": "evil/model"}, "data_files": []}),
    ]
    for number, (task, fields) in enumerate(cases):
        write(tmp_path / f"victim{number}", honest(task).changed(**fields))
        with watched(tmp_path / "nowhere") as done, pytest.raises(UnbackdoorError):
            open_victim(tmp_path / f"victim{number}", trust=True)
        assert done == [], fields
    assert not (tmp_path / "RAN").exists()


def test_options_of_libraries_that_a_card_may_set_are_taken(tmp_path):
    for model, options in [
        ("timm:test_resnet", {"num_classes": 10, "in_chans": 1}),
        ("torchvision:shufflenet_v2_x0_5", {"num_classes": 10}),
        ("preactresnet18", {"num_classes": 10, "in_channels": 1, "width": 4}),
    ]:
        built = kit("image").build(model, **options)
        from unbackdoor.attacker.victim import architecture
        from unbackdoor.attacker.victim_card import VictimCard

        card = VictimCard(**{**honest("image").card, "model": model, "model_options": options, "data_files": ()})
        again = architecture(card, kit("image"))
        assert list(again.state_dict()) == list(built.state_dict())


@pytest.mark.parametrize(
    ("task", "model", "option"),
    [
        ("image", "timm:resnet18", {"pretrained": True}),
        ("image", "torchvision:resnet18", {"weights": "DEFAULT"}),
        ("image", "vit_small", {"checkpoint_path": "x.pt"}),
        ("image", "timm:resnet18", {"pretrained_cfg": {"url": "https://127.0.0.1:9/x"}}),
        ("multilabel", "timm:resnet18", {"pretrained": True}),
        ("multilabel", "torchvision:resnet18", {"weights_backbone": "DEFAULT"}),
        ("video", "torchvision:r3d_18", {"weights": "DEFAULT"}),
        ("translation", "hub:nowhere", {"trust_remote_code": True}),
        ("translation", "hub:nowhere", {"cache_dir": "x"}),
        ("image", "smallcnn", {"extra": {"pretrained": True}}),
    ],
)
def test_user_is_told_that_weights_come_from_the_checkpoint(task, model, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with watched(tmp_path / "nowhere") as done, pytest.raises(BadOption, match="weights come from the checkpoint"):
        kit(task).build(model, num_classes=3, **option)
    assert done == []
    assert not list(tmp_path.iterdir())


def test_option_that_asks_for_nothing_is_no_matter():
    assert kit("image").build("torchvision:squeezenet1_1", num_classes=3, weights=None)


def test_card_of_a_plan_leaves_out_where_first_weights_came_from(tmp_path):
    image = kit("image")
    plan = Plan("digits", "smallcnn", "blend", model_options={"in_channels": 1, "pretrained": False, "weights": None})
    data = plan.read(image, seed=0)
    card = plan.card("image", data, plan.make_attack(image, data), {"asr": 1.0}, seed=0, device=torch.device("cpu"))
    assert card.model_options == {"num_classes": 10, "in_channels": 1}


def test_data_elsewhere_are_asked_for_and_taken_from_the_user(tmp_path):
    card = card_of(tmp_path / "victim")
    write(card.parent, honest("image").changed(data="folder", data_options={"path": str(tmp_path / "data"), "size": 8}))
    with pytest.raises(UntrustedVictim, match=r"data lay at .*data.*Give --data-path"):
        open_victim(card.parent)
    with pytest.raises(UnbackdoorError, match="no folder"):
        open_victim(card.parent, trust=True)
    with pytest.raises(UnbackdoorError, match="no folder"):
        open_victim(card.parent, data_path=tmp_path / "data")


def test_victim_is_what_has_a_card_good_or_bad(tmp_path):
    assert not is_victim(tmp_path)
    assert not is_victim("\0")
    (tmp_path / "card.json").symlink_to("/dev/zero")
    assert is_victim(tmp_path)
    with pytest.raises(UntrustedVictim, match="is a link"):
        task_of_victim(tmp_path)


def test_memory_is_refused_before_it_is_taken():
    with at_most(10**6, "a test"):
        torch.nn.Linear(100, 100)
        torch.arange(1000).reshape(10, 100).expand(7, 10, 100)
    for make in (
        lambda: torch.nn.Linear(10**6, 10**6),
        lambda: torch.empty(2**40),
        lambda: torch.arange(2**40),
        lambda: torch.linspace(0, 1, 2**40),
        lambda: torch.eye(2**20),
        lambda: torch.zeros(1).new_zeros(2**40),
        lambda: [torch.ones(1000) for _ in range(1000)],
        lambda: [torch.zeros(300) + 1 for _ in range(1000)],
    ):
        with pytest.raises(TooLarge, match="a test asks for more than 1,000,000 bytes"), at_most(10**6, "a test"):
            make()
    with pytest.raises(TooLarge, match="more than 5 tensors"), at_most(10**6, "a test", count=5):
        [torch.zeros(1) for _ in range(6)]


@pytest.mark.parametrize("model", ["smallcnn", "torchvision:squeezenet1_1", "timm:vit_tiny_patch16_224"])
def test_model_that_does_not_fit_the_data_is_one_sentence(model):
    image = kit("image")
    plan = Plan("digits", model, "badnets")
    data = plan.read(image, seed=0)
    with pytest.raises(BadOption, match=r"cannot answer samples of digits, which have the form \(1, 8, 8\)") as refusal:
        plan.train(image, data, plan.make_attack(image, data), seed=0)
    assert "\n" not in str(refusal.value)


def test_figures_that_are_no_numbers_are_not_healthy(tmp_path):
    write(tmp_path / "victim", honest("image"))
    victim = Victim.load(tmp_path / "victim", kit("image"))
    from dataclasses import replace

    bad = replace(victim, card=replace(victim.card, figures={"accuracy": float("nan"), "asr": 99.0}))
    with pytest.raises(UnhealthyAttack):
        bad.save(tmp_path / "other")


COMMANDS = {
    "purify": lambda victim, out: ["purify", victim, "--method", "ft", "--steps", "1", "--out", f"{out}/p.safetensors"],
    "evaluate": lambda victim, out: ["evaluate", victim],
    "attack from": lambda victim, out: ["evaluate", f"{victim}/model.safetensors", "--attack-from", victim],
    "train like": lambda victim, out: [
        "train", "--defence", "abl", "--like", victim, "--out", f"{out}/t.safetensors", "--epochs", "1",
    ],
    "compare": lambda victim, out: ["compare", victim, "--methods", "ft", "--out", f"{out}/comparison"],
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_command_refuses_code_of_a_card_and_runs_none(command, tmp_path, monkeypatch, capsys):
    lay(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    write(tmp_path / "victim", honest("image").changed(model="evil:build"))
    monkeypatch.chdir(tmp_path / "here")
    with watched(tmp_path / "outside") as done:
        code = main(COMMANDS[command](str(tmp_path / "victim"), str(out)))
    printed = capsys.readouterr()
    assert not (tmp_path / "RAN").exists()
    assert done == []
    if command == "compare":  # a cell that is refused is told of beside the table
        assert "refused" in printed.err
    else:
        assert code == 2
        assert "--trust" in printed.err
