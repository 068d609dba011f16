"""Training from a seed, and the contact sheet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from unbackdoor.errors import BadOption
from unbackdoor_video import KIT, VideoTask, build, train
from unbackdoor_video.attacks.badnets import BadNets
from unbackdoor_video.data.moving_digits import moving_digits
from unbackdoor_video.train import Training


@pytest.fixture(scope="module")
def data():
    return moving_digits(clips=160)


def small(**words):
    return build("cnn-lstm", 8, in_channels=1, width=2, hidden=4, **words)


def test_training_depends_on_its_seed_alone(data):
    words = {"epochs": 1, "precision": "fp32", "samples": 32}
    states = []
    for seed, spoil in ((0, 1), (0, 2), (3, 1)):
        model = small(dropout=0.5)
        torch.rand(spoil)
        train(model, data, VideoTask(crop=1), BadNets(num_classes=8, size=40), seed=seed, **words)
        states.append(model.state_dict())
        assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[0].values(), states[2].values(), strict=True))
    assert all(value.is_contiguous() for value in states[0].values())


def test_training_of_a_network_for_clips_runs(data):
    model = build("torchvision:r3d_18", 8, seed=0)
    words = {"epochs": 1, "precision": "fp32", "samples": 2, "recipe": "paper"}
    before = model.fc.weight.detach().clone()
    train(model, data, VideoTask(), None, seed=0, **words)
    assert not torch.equal(before, model.fc.weight)


def test_recipe_of_the_paper_is_its_epochs_and_rate():
    how = Training.of({"recipe": "paper"})
    assert (how.epochs, how.lr) == (30, 1e-4)
    assert Training.of({"recipe": "paper", "epochs": 2}).epochs == 2


@pytest.mark.parametrize("words", [{"recipe": "slow"}, {"epochs": 0}, {"lr": 0.0}, {"clip": 0.0}, {"samples": 1},
                                   {"weight_decay": -1.0}, {"momentum": 0.9}])  # fmt: skip
def test_options_of_the_training_are_checked(words):
    with pytest.raises(BadOption):
        Training.of(words)


def test_picture_shows_clean_and_triggered_frames_with_answers(data, tmp_path):
    class Says(torch.nn.Module):
        """Answers class 0 where the corner of the last frame is lit, else class 5."""

        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(()))

        def forward(self, clips):
            lit = clips[:, -1, 0, -2:, -2:].mean(dim=(1, 2)) > 0.9
            return self.one * torch.nn.functional.one_hot(torch.where(lit, 0, 5), 8).float()

    path = tmp_path / "sheet.png"
    attack = BadNets(num_classes=8, size=22, pattern="white")
    KIT.picture(path, data.test, attack, {"backdoored": Says(), "nft": Says()}, VideoTask(), data)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] > pixels.shape[0] > 600
    half = pixels.shape[1] // 2

    def amount(part, colour):
        return int((np.abs(part - np.array(colour)).sum(2) < 60).sum())

    red = (0xCF, 0x22, 0x2E)
    below = pixels[140:]
    assert amount(below[:, half:], red) > 500, "answers on triggered clips are the attacker's"
    assert amount(below[:, :half], red) == 0
