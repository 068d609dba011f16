"""Clouds that a network reads otherwise than it was trained are told, with what mends it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import unbackdoor
from unbackdoor.defender.preflight.check import misfit
from unbackdoor.defender.preflight.standing import standing
from unbackdoor.errors import PreflightFailed
from unbackdoor.task import Batch
from unbackdoor_pointcloud import PointTask
from unbackdoor_pointcloud.data.normalising import unit_sphere

TASK = PointTask()


class Heavy(nn.Module):
    """Answers whether most of a cloud of the unit sphere lies above its middle, and how far from it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        high, wide = x[..., 2].median(1).values, x.norm(dim=2).mean(1) - 0.62
        return self.scale * torch.stack([high + wide, high - wide, wide - high, -high - wide], 1)


@pytest.fixture(scope="module")
def clean() -> Batch:
    """Four classes: points near the surface or near the middle, three in four of them above or below it."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(80) % 4
    points = torch.randn(80, 60, 3, generator=generator)
    points = points / points.norm(dim=2, keepdim=True)
    radius = torch.where((targets % 2 == 0)[:, None], 0.9, 0.4) + 0.1 * torch.rand(80, 60, generator=generator)
    radius[:, :4] = 1.0
    up = torch.where(torch.rand(80, 60, generator=generator) < 0.75, 1.0, -1.0)
    up = up * torch.where(targets < 2, 1.0, -1.0)[:, None]
    points = torch.cat([points[..., :2], (points[..., 2].abs() * up)[..., None]], 2)
    return Batch(points * radius[..., None], targets)


def why(clean: Batch, task: PointTask = TASK) -> str | None:
    model = Heavy()
    return misfit(standing(model, clean, task), model, clean, task, labelled=True)


def test_clouds_that_are_read_right_are_not_accused(clean):
    assert standing(Heavy(), clean, TASK).accuracy > 90
    assert why(clean) is None
    assert why(Batch(unit_sphere(clean.inputs), clean.targets)) is None


def test_clouds_beyond_the_unit_sphere_are_told(clean):
    far = Batch(3 * clean.inputs + torch.tensor([5.0, 0.0, 40.0]), clean.targets)
    assert "(--data-option normalise=true). Give that" in why(far)
    with pytest.raises(PreflightFailed, match="--data-option normalise=true"):
        unbackdoor.purify(Heavy(), far, task=TASK, method="ft", steps=1)


@pytest.mark.parametrize(
    ("place", "signs", "told"),
    [
        ((0, 2, 1), (1, 1, -1), "clouds upright along z, made so from y: (x, -z, y)"),
        ((0, 2, 1), (1, -1, 1), "clouds upright along y, made so from z: (x, z, -y)"),
        ((2, 1, 0), (1, 1, 1), "clouds with x and z exchanged"),
    ],
)
def test_another_upright_axis_is_told(clean, place, signs, told):
    text = why(Batch(clean.inputs[..., list(place)] * torch.tensor(signs), clean.targets))
    assert f"with {told}. Give that" in text


def test_layouts_are_tried_where_a_network_could_take_them(clean):
    readings = list(PointTask(layout="channels").readings(clean))
    rare = [reading for reading in readings if reading.rare]
    assert [reading.advice for reading in rare] == ["--task-option layout=points"]
    assert rare[0].task.layout == "points"
    assert all(reading.change(clean).inputs.shape == clean.inputs.shape for reading in readings)
    assert not any("geometric" in reading.advice for reading in readings)


def test_chance_is_the_most_frequent_class(clean):
    few = clean[torch.cat([torch.arange(0, 80, 4), torch.arange(1, 40, 4)])]
    found = standing(Heavy(), few, TASK)
    assert found.chance == pytest.approx(2 / 3)
    assert found.constant == 0
