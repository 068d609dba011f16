"""The task: layouts, augmentation, mixtures against the definition, meters, notices."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch
from unbackdoor_pointcloud import PointTask, augment
from unbackdoor_pointcloud.meters import MeanClassAccuracy
from unbackdoor_pointcloud.mixing import match, mix_by_path, mix_by_subsets


class Shape(nn.Module):
    """Says what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.given: object = None

    def forward(self, given: Tensor) -> Tensor:
        self.given = given
        return torch.zeros(2, 2)


def test_layouts_are_what_libraries_take(clouds: Tensor) -> None:
    model = Shape()
    PointTask(layout="points").forward(model, clouds)
    assert torch.equal(model.given, clouds)
    PointTask(layout="channels").forward(model, clouds)
    assert torch.equal(model.given, clouds.transpose(1, 2))


def test_geometric_layout_is_a_batch_of_torch_geometric(clouds: Tensor) -> None:
    geometric = pytest.importorskip("torch_geometric.data")
    model = Shape()
    PointTask(layout="geometric").forward(model, clouds[:2])
    expected = geometric.Batch.from_data_list([geometric.Data(pos=cloud) for cloud in clouds[:2]])
    for name in ("pos", "batch", "ptr"):
        assert torch.equal(getattr(model.given, name), getattr(expected, name)), name


def test_clouds_follow_the_models_dtype(clouds: Tensor) -> None:
    model = Shape().double()
    PointTask().forward(model, clouds)
    assert model.given.dtype is torch.float64


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, 5), torch.zeros(4, 3), torch.zeros(2, 5, 3, dtype=torch.long)])
def test_inputs_that_are_no_clouds_are_refused(wrong: Tensor) -> None:
    with pytest.raises(BadData, match="batch, points, 3"):
        PointTask().forward(Shape(), wrong)


def test_options_out_of_range_are_refused() -> None:
    for options in ({"layout": "grid"}, {"rotate": "down"}, {"mixture": "mean"}, {"jitter": -1.0}, {"drop": 1.0}):
        with pytest.raises(BadOption, match=next(iter(options))):
            PointTask(**options)


def test_rotations_are_rotations(clouds: Tensor, generator: torch.Generator) -> None:
    for kind in ("up", "any"):
        turned = augment.rotate(clouds.double(), generator, kind)
        assert_close(torch.cdist(turned, turned), torch.cdist(clouds.double(), clouds.double()))
        assert not torch.allclose(turned, clouds.double())
        assert torch.allclose(turned[..., 2], clouds[..., 2].double()) == (kind == "up")
    many = augment.rotate(torch.tensor([[[0.0, 0.0, 1.0]]]).expand(4000, 1, 3), generator, "any")
    assert float(many.mean(0).abs().max()) < 0.05  # all directions alike
    assert float((many.squeeze(1).T @ many.squeeze(1) / 4000 - torch.eye(3) / 3).abs().max()) < 0.03


def test_rotation_about_an_axis_is_that_of_the_matrix() -> None:
    turn = augment.rotations(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([torch.pi / 2]))
    assert_close(turn, torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]))


def test_scale_keeps_directions_and_its_range(generator: torch.Generator) -> None:
    clouds = torch.ones(500, 2, 3)
    factor = augment.scale(clouds, generator, 0.25)[:, 0, 0]
    assert 0.8 <= float(factor.min()) < 0.82
    assert 1.23 < float(factor.max()) <= 1.25
    assert torch.equal(augment.scale(clouds, generator, 0.0), clouds)


def test_dropped_points_are_replaced_by_one_that_stays(clouds: Tensor, generator: torch.Generator) -> None:
    dropped = augment.drop_points(clouds, generator, 0.9)
    assert dropped.shape == clouds.shape
    for before, after in zip(clouds, dropped, strict=True):
        changed = (before != after).any(dim=1)
        assert len(after[changed].unique(dim=0)) <= 1
        if bool(changed.any()):
            assert any(torch.equal(after[changed][0], point) for point in before[~changed])
    assert bool((dropped != clouds).any())


def test_jitter_has_its_deviation_and_no_outliers(generator: torch.Generator) -> None:
    noise = augment.jitter(torch.zeros(50, 200, 3), generator, 0.02)
    assert float(noise.std()) == pytest.approx(0.02, rel=0.03)
    assert float(noise.abs().max()) <= 0.1


def test_match_is_the_best_of_all_assignments(generator: torch.Generator) -> None:
    first, second = torch.randn(2, 3, 5, 3, generator=generator, dtype=torch.float64)
    found = match(first, second)
    for b in range(3):
        costs = torch.cdist(first[b], second[b])
        best = min(sum(float(costs[i, p[i]]) for i in range(5)) for p in permutations(range(5)))
        assert sum(float(costs[i, found[b, i]]) for i in range(5)) == pytest.approx(best)


def test_path_mixture_goes_from_one_cloud_to_the_other(generator: torch.Generator) -> None:
    first, second = torch.randn(2, 3, 9, 3, generator=generator)
    assert_close(mix_by_path(first, second, torch.ones(3)), first)
    assert_close(mix_by_path(first, second, torch.zeros(3)).sum(1), second.sum(1))
    order = torch.randperm(9, generator=generator)
    assert_close(mix_by_path(first, first[:, order], torch.tensor([0.5, 0.2, 0.7])), first)


def test_subset_mixture_takes_as_many_points_as_its_share_says(generator: torch.Generator) -> None:
    first, second = torch.zeros(4, 10, 3), torch.ones(4, 10, 3)
    mixed, shares = mix_by_subsets(first, second, torch.tensor([0.0, 0.33, 0.5, 1.0]), generator)
    assert_close(shares, torch.tensor([0.0, 0.3, 0.5, 1.0]))
    assert_close((mixed[..., 0] == 0).float().mean(1), shares)


@pytest.mark.parametrize("mixture", ["subset", "path"])
def test_augmentation_mixes_clouds_and_labels_alike(mixture: str, generator: torch.Generator) -> None:
    levels = torch.arange(6.0)
    batch = Batch(levels.view(6, 1, 1).expand(6, 50, 3).contiguous(), torch.arange(6))
    task = PointTask(jitter=0.0, scale=0.0, drop=0.0, mixture=mixture)
    mixed = task.augment(batch, generator, mix=1.0)
    first, second, share = mixed.targets
    assert_close(mixed.inputs.mean(dim=(1, 2)), share * levels[first] + (1 - share) * levels[second])
    assert torch.equal(first, batch.targets)
    assert float(share.std()) > 0


def test_mean_class_accuracy_counts_classes_alike() -> None:
    meter = MeanClassAccuracy()
    targets = torch.tensor([0, 0, 0, 0, 2, 2])
    answers = torch.tensor([0, 0, 0, 1, 2, 0])
    for part in (slice(0, 3), slice(3, 6)):
        meter.update(torch.nn.functional.one_hot(answers[part], 4).float(), targets[part])
    assert meter.compute() == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert MeanClassAccuracy().compute() != MeanClassAccuracy().compute()  # NaN


def test_clouds_far_from_the_origin_are_noticed(clouds: Tensor) -> None:
    task, logits = PointTask(), torch.zeros(6, 3)
    inside = clouds / clouds.norm(dim=2).max()
    assert task.inspect(Batch(inside, torch.arange(6) % 3), logits) == []
    (notice,) = task.inspect(Batch(inside + 4, torch.arange(6) % 3), logits)
    assert "unit sphere" in notice


def test_match_takes_many_points_in_blocks_each_the_best(generator: torch.Generator) -> None:
    first, second = torch.randn(2, 2, 300, 3, generator=generator)
    found = match(first, second)
    for start, end in ((0, 128), (128, 256), (256, 300)):
        block = match(first[:, start:end], second[:, start:end])
        assert torch.equal(found[:, start:end], block + start)
    assert torch.equal(found.sort(dim=1).values, torch.arange(300).expand(2, 300))
