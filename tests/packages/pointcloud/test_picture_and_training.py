"""The sheet, the preview, and training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import BadOption
from unbackdoor.evaluate import evaluate
from unbackdoor_pointcloud import KIT, PointTask, build, train
from unbackdoor_pointcloud.train import Training, _optimiser


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_picture_and_preview_are_written(bodies: Splits, tmp_path: Path) -> None:
    attacks = [KIT.attacks[name](num_classes=6) for name in ("pointpba-i", "pointpba-o")]
    model = build("pointnet_small", 6).train()
    path = tmp_path / "out" / "sheet.png"
    for attack in attacks:
        KIT.picture(path, bodies.test, attack, {"before": model, "nft": model}, PointTask(), bodies)
        assert is_png(path)
    assert model.training
    assert KIT.preview is not None
    KIT.preview(tmp_path / "triggers.png", attacks, bodies.test)
    assert is_png(tmp_path / "triggers.png")


def test_victim_learns_shapes_and_trigger(bodies: Splits) -> None:
    attack = KIT.attacks["pointpba-i"](num_classes=6, share=0.1, rate=0.15)
    model, again = (build("pointnet_small", 6, seed=1) for _ in range(2))
    before = torch.get_rng_state()
    for one in (model, again):
        train(one, bodies, PointTask(), attack, seed=0, epochs=15, batch_size=16)
    assert torch.equal(before, torch.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    figures = evaluate(model, bodies.test, PointTask(), attack)
    assert figures["accuracy"] >= 50
    assert figures["asr"] >= 70
    assert 0 <= figures["class accuracy"] <= 100


def test_paper_recipe_halves_the_rate_every_twenty_epochs() -> None:
    optimiser, schedule = _optimiser(build("pointnet_small", 4), Training(recipe="paper", epochs=60), 600)
    rates = []
    for _ in range(600):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert rates[0] == rates[199] == 1e-3
    assert rates[200] == rates[399] == 5e-4
    assert rates[599] == 2.5e-4


@pytest.mark.parametrize("options", [{"recipe": "slow"}, {"epochs": 0}, {"lr": 0.0}, {"samples": 1}, {"batch": 3}])
def test_training_refuses_what_it_does_not_know(options: dict[str, object]) -> None:
    with pytest.raises(BadOption, match=next(iter(options))):
        Training.of(options)
