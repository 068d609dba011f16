"""Clips that a network reads otherwise than it was trained are told, with the flag that mends it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import unbackdoor
from unbackdoor.defender.preflight.check import misfit
from unbackdoor.defender.preflight.standing import standing
from unbackdoor.errors import PreflightFailed
from unbackdoor.task import Batch
from unbackdoor_video import VideoTask


class Brightest(nn.Module):
    """Answers with the brightest channel of ``(batch, channels, frames, height, width)``, in pixels of 0..255."""

    def __init__(self, level: float = 0.0) -> None:
        super().__init__()
        self.scale, self.level = nn.Parameter(torch.tensor(8.0)), level

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x.mean((2, 3, 4)) - self.level).clamp(min=0)


@pytest.fixture(scope="module")
def coloured() -> Batch:
    """Clips of three frames, each of one of three colours."""
    targets = torch.arange(60) % 3
    colour = nn.functional.one_hot(targets, 3).float()[:, None, :, None, None]
    noise = torch.rand(60, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(0.6 * colour + 0.3 * noise, targets)


def why(clean: Batch, task: VideoTask, model: nn.Module) -> str | None:
    return misfit(standing(model, clean, task), model, clean, task, labelled=True)


def test_the_other_layout_is_tried_last_and_named(coloured):
    task, model = VideoTask(layout="channels"), Brightest()
    assert why(coloured, task, model) is None
    wrong = replace(task, layout="frames")
    assert "with --task-option layout=channels. Give that" in why(coloured, wrong, model)
    assert [reading.rare for reading in wrong.readings(coloured)][-1]
    with pytest.raises(PreflightFailed, match="--task-option layout=channels"):
        unbackdoor.purify(model, coloured, task=wrong, method="ft", steps=1)


def test_pixels_of_another_range_are_told(coloured):
    """A network for 0..255 sees next to nothing in 0..1."""
    model = Brightest(level=100.0)
    right = VideoTask(layout="channels", mean=(0.0,) * 3, std=(1 / 255,) * 3)
    assert why(coloured, right, model) is None
    assert "--mean 0.0000,0.0000,0.0000 --std 0.0039,0.0039,0.0039 (0..255)" in why(
        coloured, VideoTask(layout="channels"), model
    )


def test_readings_are_of_whole_clips(coloured):
    """Every change keeps frames and channels; sizes change both sides of each frame."""
    task = VideoTask()
    sizes = set()
    for reading in task.readings(coloured[slice(0, 2)]):
        made = reading.change(coloured[slice(0, 2)])
        assert made.inputs.shape[:3] == (2, 3, 3)
        assert isinstance(reading.task, VideoTask)
        sizes.add(made.inputs.shape[3:])
    assert {(8, 8), (32, 32)} <= sizes


def test_chance_is_the_most_frequent_class(coloured):
    found = standing(Brightest(level=100.0), coloured, VideoTask(layout="channels"))
    assert found.logits is not None
    assert found.chance == pytest.approx(1 / 3)
    assert not found.above_chance
