"""Label maps, what is poisoned and counted, the figures taken of it, and victims on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.attacker.label_map import AllToAll, AllToOne
from unbackdoor.attacker.victim import Victim, VictimCard
from unbackdoor.errors import BadOption, FileRefused, UnhealthyAttack, UnknownName
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask, SquareTrigger

TASK = ClassificationTask()
Y = torch.tensor([0, 1, 2, 1, 0, 2])


class CleanLabel(SquareTrigger):
    name = "clean-square"
    clean_label = True


def images(count=40, classes=4):
    return Batch(torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(count) % classes)


def test_all_to_one_maps_everything_and_counts_the_others():
    assert AllToOne(1)(Y).tolist() == [1] * 6
    assert AllToOne(1).counts(Y).tolist() == [True, False, True, False, True, True]


def test_all_to_all_shifts_by_one_and_counts_all():
    assert AllToAll(3)(Y).tolist() == [1, 2, 0, 2, 1, 0]
    assert bool(AllToAll(3).counts(Y).all())
    with pytest.raises(BadOption, match="at least 2"):
        AllToAll(1)


@pytest.mark.parametrize("bad", [{"target": 4}, {"target": -1}, {"rate": 0.0}, {"rate": 1.5}])
def test_attack_refuses_options_outside_their_range(bad):
    with pytest.raises(BadOption):
        SquareTrigger(num_classes=4, **bad)
    with pytest.raises(BadOption, match="all_to_all has no meaning"):
        CleanLabel(num_classes=4, all_to_all=True)


@pytest.mark.parametrize(("rate", "expected"), [(0.1, 4), (0.05, 2), (0.01, None), (0.75, 30), (0.8, None)])
def test_attack_poisons_exactly_the_rate_of_all_samples(rate, expected):
    attack = SquareTrigger(num_classes=4, rate=rate)
    if expected is None:
        with pytest.raises(BadOption, match="asks for"):
            attack.poison(images(), torch.Generator().manual_seed(0))
        return
    poisoned = attack.poison(images(), torch.Generator().manual_seed(0))
    assert len(poisoned.indices) == expected
    assert poisoned.samples.targets[poisoned.indices].unique().tolist() == [0]
    assert not bool((images().targets[poisoned.indices] == 0).any())


def test_clean_label_attack_poisons_a_share_of_the_target_class_and_keeps_labels():
    poisoned = CleanLabel(num_classes=4, rate=0.5, target=2).poison(images(), torch.Generator().manual_seed(0))
    assert len(poisoned.indices) == 5
    assert images().targets[poisoned.indices].unique().tolist() == [2]
    assert torch.equal(poisoned.samples.targets, images().targets)


class Fixed(nn.Module):
    """Answers class 0 where the corner is lit, and else the class that is written in the last pixel."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        written = (x[:, 0, -1, -1] * 10).round().long()
        return self.weight * nn.functional.one_hot(torch.where(x[:, 0, 0, 0] == 1, 0, written), 4).float()


def written(batch):
    inputs = batch.inputs * 0.5
    inputs[:, 0, -1, -1] = batch.targets / 10
    return Batch(inputs, batch.targets)


@pytest.mark.parametrize("batch_size", [7, 500])
def test_evaluate_counts_only_samples_that_the_attack_changes(batch_size):
    data = written(images())
    figures = unbackdoor.evaluate(Fixed(), data, TASK, SquareTrigger(num_classes=4), batch_size=batch_size)
    assert_close(figures, {"accuracy": 100.0, "asr": 100.0, "lcr": 0.0}, rtol=0, atol=1e-9)
    harmless = unbackdoor.evaluate(Fixed(), data, TASK, SquareTrigger(num_classes=4, target=1))
    assert harmless["asr"] == 0.0
    assert_close(harmless["lcr"], 100 * 10 / 30, rtol=0, atol=1e-9)
    everywhere = unbackdoor.evaluate(Fixed(), data, TASK, SquareTrigger(num_classes=4, all_to_all=True))
    assert_close(everywhere["asr"], 25.0, rtol=0, atol=1e-9)


def test_evaluate_leaves_mode_and_buffers_as_found():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(16, 4)).train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    state = torch.get_rng_state()
    unbackdoor.evaluate(model, images(), TASK, SquareTrigger(num_classes=4))
    assert all(m.training for m in model.modules())
    assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def build(name, *, width):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.Linear(width, 4))


KIT = SimpleNamespace(build=build, attacks={"square": SquareTrigger})


def victim(asr=99.0):
    torch.manual_seed(0)
    card = VictimCard(
        task="classification", model="mlp", model_options={"width": 5}, data="none", data_options={}, attack="square",
        attack_options={"num_classes": 4, "size": 3}, train_options={}, seed=0,
        figures={"accuracy": 90.0, "asr": asr, "lcr": 1.0},
    )  # fmt: skip
    return Victim(build("mlp", width=5), SquareTrigger(num_classes=4, size=3), card)


def test_victim_comes_back_from_its_folder(tmp_path):
    given = victim()
    given.save(tmp_path / "v")
    found = Victim.load(tmp_path / "v", KIT)
    assert_close(found.model.state_dict(), given.model.state_dict(), rtol=0, atol=0)
    assert found.attack == given.attack
    assert not found.model.training
    assert replace(found.card, hash="") == given.card
    assert not list((tmp_path / "v").glob("*.pt"))


def test_victim_below_its_floor_is_refused(tmp_path):
    with pytest.raises(UnhealthyAttack, match=r"ASR of 12\.0"):
        victim(asr=12.0).save(tmp_path / "v")
    assert not (tmp_path / "v").exists()


def test_victim_is_not_overwritten_unless_forced(tmp_path):
    victim().save(tmp_path / "v")
    with pytest.raises(FileRefused, match="exists"):
        victim().save(tmp_path / "v")
    victim().save(tmp_path / "v", force=True)


def test_victim_with_other_weights_than_its_card_is_refused(tmp_path):
    victim().save(tmp_path / "v")
    unbackdoor.save(build("mlp", width=5), tmp_path / "v" / "model.safetensors", force=True)
    with pytest.raises(FileRefused, match=r"not the model that card\.json describes"):
        Victim.load(tmp_path / "v", KIT)


def test_victim_of_an_unknown_attack_or_none_at_all_is_refused(tmp_path):
    with pytest.raises(FileRefused, match="holds no victim"):
        Victim.load(tmp_path, KIT)
    victim().save(tmp_path / "v")
    card = json.loads((tmp_path / "v" / "card.json").read_text())
    (tmp_path / "v" / "card.json").write_text(json.dumps(card | {"attack": "sqare"}))
    with pytest.raises(UnknownName, match="Did you mean 'square'"):
        Victim.load(tmp_path / "v", KIT)
