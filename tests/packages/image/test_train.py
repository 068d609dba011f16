"""Training: a healthy victim in seconds, poison after the augmentation, and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.training import native_bf16
from unbackdoor.attacker.victim import Victim, VictimCard
from unbackdoor.errors import BadOption, NonFinite
from unbackdoor.evaluate import evaluate
from unbackdoor.task import Batch
from unbackdoor_image import KIT, ImageTask, train
from unbackdoor_image.train import Training, _optimiser

SHORT = {"epochs": 6, "batch_size": 64, "lr": 0.1, "precision": "fp32"}


@pytest.fixture(scope="module")
def digits() -> Splits:
    return KIT.data["digits"](seed=0)


@pytest.fixture(scope="module")
def victim(digits: Splits) -> Victim:
    attack, model = KIT.attacks["blend"](), KIT.build("smallcnn", 10, in_channels=1, width=8)
    train(model, digits, ImageTask(), attack, seed=0, **SHORT)
    card = VictimCard(
        task="image",
        model="smallcnn",
        model_options={"in_channels": 1, "width": 8},
        data="digits",
        data_options={},
        attack="blend",
        attack_options=attack.options(),
        train_options=SHORT,
        seed=0,
        figures=evaluate(model, digits.test, ImageTask(), attack),
    )
    return Victim(model, attack, card)


def test_digits_victim_is_healthy(victim: Victim) -> None:
    victim.check_health()
    assert victim.card.figures["accuracy"] >= 93
    assert victim.card.figures["asr"] >= 95
    assert not victim.model.training


def test_victim_comes_back_from_its_folder(victim: Victim, digits: Splits, tmp_path: Path) -> None:
    victim.save(tmp_path / "victim")
    loaded = Victim.load(tmp_path / "victim", KIT)
    assert_close(evaluate(loaded.model, digits.test, ImageTask(), loaded.attack), dict(victim.card.figures))


def test_training_repeats_with_its_seed(digits: Splits) -> None:
    states = []
    for seed in (1, 1, 2):
        model = KIT.build("smallcnn", 10, in_channels=1, width=2)
        train(model, digits, ImageTask(), KIT.attacks["badnets"](), seed=seed, epochs=1, precision="fp32")
        states.append(model.state_dict())
    assert_close(states[0], states[1], rtol=0, atol=0)
    assert not torch.equal(states[0]["fc.weight"], states[2]["fc.weight"])


class _Recorder(nn.Module):
    """Keeps every batch that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.seen = nn.Linear(1, 10), []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        answer: Tensor = self.fc(x.mean((2, 3))[:, :1])
        return answer


@dataclass(frozen=True)
class _Remembering(ImageTask):
    """Keeps the targets of every loss."""

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        _TARGETS.append(targets.clone())
        return super().loss(outputs, targets)


_TARGETS: list[Tensor] = []


@pytest.mark.parametrize("name", ["badnets", "sig"])
def test_poison_is_put_on_after_the_crop(name: str) -> None:
    _TARGETS.clear()
    black = Batch(torch.zeros(40, 1, 8, 8), torch.arange(40) % 10)
    data = Splits(black, black, black, tuple("0123456789"))
    options = {"sig": {"rate": 1.0, "delta": 255.0, "frequency": 1.0}, "badnets": {"rate": 0.25}}[name]
    attack, model = KIT.attacks[name](**options), _Recorder()
    train(model, data, _Remembering(crop=3), attack, seed=0, epochs=2, batch_size=20, precision="fp32")
    seen, targets = torch.cat(model.seen), torch.cat(_TARGETS)
    carried = seen.flatten(1).any(dim=1)
    expected = attack.trigger(torch.zeros(1, 1, 8, 8)).expand(int(carried.sum()), -1, -1, -1)
    assert_close(seen[carried], expected)
    assert int(carried.sum()) == 2 * (10 if name == "badnets" else 4)
    assert_close(targets[carried], torch.zeros(int(carried.sum()), dtype=torch.long))
    counts = targets.bincount(minlength=10).tolist()
    assert sum(counts) == 80
    assert counts[0] == (28 if name == "badnets" else 8)


def test_progress_is_told_and_the_paper_recipe_runs(digits: Splits) -> None:
    told: list[tuple[int, int, Mapping[str, float]]] = []
    model = KIT.build("smallcnn", 10, in_channels=1, width=2)
    train(model, digits, ImageTask(), None, seed=0, progress=lambda *args: told.append(args), recipe="paper", epochs=1)
    assert [step for step, _, _ in told] == list(range(1, 10))
    assert told[-1][1] == 9
    assert_close(told[0][2]["lr"], 0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epoch": 3}, "no option 'epoch'. Known: epochs"),
        ({"recipe": "slow"}, "fast, paper, paper-gtsrb"),
        ({"precision": "fp8"}, "auto, fp32, bf16"),
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BadOption) as caught:
        Training.of(options)
    assert words in str(caught.value)


def test_recipes_fill_in_epochs_and_lr() -> None:
    assert (Training(recipe="paper").epochs, Training(recipe="paper").lr) == (250, 0.01)
    assert Training(epochs=3).epochs == 3


def test_recipes_of_the_papers_fall_by_ten_at_their_epochs(digits: Splits) -> None:
    for recipe, drop, lr, decay in (("paper", 100, 0.01, 5e-4), ("paper-tiny", 60, 0.005, 1e-4)):
        how = Training(recipe=recipe)
        assert how.weight_decay == decay
        optimiser, schedule = _optimiser(nn.Linear(1, 1), how, steps=how.epochs)
        rates = []
        for _ in range(how.epochs):
            rates.append(schedule.get_last_lr()[0])
            optimiser.step()
            schedule.step()
        assert_close(rates[drop - 1], lr)
        assert_close(rates[drop], lr / 10)
        assert_close(rates[2 * drop], lr / 100)


def test_samples_limits_the_training_part(digits: Splits) -> None:
    seen = _Recorder()
    train(seen, digits, ImageTask(crop=0), None, seed=0, epochs=3, samples=50, batch_size=50, precision="fp32")
    rows = torch.cat(seen.seen).flatten(1)
    assert len(rows) == 150
    assert len(rows.unique(dim=0)) <= 50


def test_a_loss_that_explodes_stops_the_training(digits: Splits) -> None:
    model = KIT.build("smallcnn", 10, in_channels=1, width=2)
    with torch.no_grad():
        model.fc.weight.fill_(float("nan"))
    with pytest.raises(NonFinite, match="lower lr"):
        train(model, digits, ImageTask(), None, seed=0, epochs=1)


def test_bf16_autocast_trains(digits: Splits) -> None:
    model = KIT.build("smallcnn", 10, in_channels=1, width=2)
    train(model, digits, ImageTask(), None, seed=0, epochs=1, precision="bf16")
    assert all(p.dtype is torch.float32 and bool(p.isfinite().all()) for p in model.parameters())
    assert isinstance(native_bf16(torch.device("cpu")), bool)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_demo_victims_are_healthy(seed: int) -> None:
    demo = KIT.demo
    data = KIT.data[demo.data](seed=seed, **demo.data_options)
    task, attack = KIT.task(**data.hints), KIT.attacks[demo.attack]()
    model = KIT.build(demo.model, len(data.classes), seed=seed, **demo.model_options)
    KIT.train(model, data, task, attack, seed=seed, **demo.train_options)
    figures = evaluate(model, data.test, task, attack)
    assert figures["accuracy"] >= 95
    assert figures["asr"] >= 97
