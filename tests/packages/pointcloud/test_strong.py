"""Strong augmentation of clouds, and the clusters and tilts that it is made of."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unbackdoor.errors import BadOption
from unbackdoor_pointcloud import PointTask
from unbackdoor_pointcloud.augment import put_clusters, tilt
from unbackdoor_pointcloud.strong import FAMILIES, strong


def drawn(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def shells(generator: torch.Generator) -> Tensor:
    ways = torch.randn(300, 200, 3, generator=generator)
    return ways / ways.norm(dim=2, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_the_form_and_changes_every_cloud(shells: Tensor, dtype: torch.dtype, family: str) -> None:
    given = shells.to(dtype)
    kept = given.clone()
    out = strong(given, drawn(), without=set(FAMILIES) - {family})
    assert (out.shape, out.dtype, out.device) == (given.shape, given.dtype, given.device)
    assert bool(torch.isfinite(out).all())
    assert torch.equal(given, kept)
    assert float((out != given).flatten(1).any(1).float().mean()) > 0.98
    assert float(out.norm(dim=2).max()) < 2


def test_draws_come_from_the_generator_alone(clouds: Tensor) -> None:
    before = torch.get_rng_state()
    first = PointTask().strong_augment(clouds, drawn(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(PointTask().strong_augment(clouds, drawn(1)), first)
    assert not torch.equal(PointTask().strong_augment(clouds, drawn(2)), first)


def test_each_cloud_gets_a_family_of_its_own(shells: Tensor) -> None:
    found = strong(shells, drawn(5))
    moved = (found != shells).any(2).float().mean(1)
    radius = found.norm(dim=2)
    on_sphere = (radius - 1).abs().amax(1) < 1e-5
    few = (moved <= 0.1) & ~on_sphere
    assert float(few.float().mean()) == pytest.approx(1 / 4, abs=0.08), "clusters"
    assert float(on_sphere.float().mean()) == pytest.approx(1 / 4, abs=0.08), "dropped points"


def test_families_that_are_left_out_are_not_drawn(shells: Tensor) -> None:
    for seed in range(5):
        dropped = PointTask().strong_augment(shells, drawn(seed), without={"cluster", "noise", "rotation"})
        assert_close(dropped.norm(dim=2), torch.ones(300, 200))
    with pytest.raises(BadOption, match="cluster, drop, noise, rotation"):
        strong(shells, drawn(), without={"rain"})
    with pytest.raises(BadOption, match="not all"):
        strong(shells, drawn(), without=FAMILIES)


def test_clusters_take_a_few_points(shells: Tensor) -> None:
    moved = (put_clusters(shells, drawn()) != shells).any(dim=2).sum(dim=1)
    assert 2 <= int(moved.min()) < 5
    assert 18 <= int(moved.max()) <= 20


def test_clusters_are_small_and_lie_anywhere_within_reach(shells: Tensor) -> None:
    found = put_clusters(5 * shells, drawn())
    places, widths = [], []
    for before, after in zip(5 * shells, found, strict=True):
        cluster = after[(before != after).any(dim=1)]
        places.append(cluster.mean(dim=0))
        widths.append(float((cluster - cluster.mean(dim=0)).norm(dim=1).max()))
    centres = torch.stack(places)
    assert max(widths) <= 2 * 0.3 * 5
    assert min(widths) < 0.1 * 5
    assert float(centres.norm(dim=1).max()) <= 5 * 1.3
    assert_close((centres > 0).float().mean(dim=0), torch.full((3,), 0.5), atol=0.1, rtol=0)
    assert float((centres.norm(dim=1) < 0.5 * 5).float().mean()) == pytest.approx(1 / 8, abs=0.06)


def test_tilts_are_small_turns_of_the_whole_cloud(shells: Tensor) -> None:
    found = tilt(shells, drawn())
    for before, after in zip(shells.double(), found.double(), strict=True):
        change = torch.linalg.lstsq(before, after).solution
        assert_close(before @ change, after, atol=1e-5, rtol=0)  # one linear map
        left, _, right = torch.linalg.svd(change)
        cosine = (float((left @ right).trace()) - 1) / 2
        assert math.degrees(math.acos(max(-1.0, min(1.0, cosine)))) < 30 + 20


def test_gradients_pass_to_the_points_that_stay(clouds: Tensor) -> None:
    given = clouds.clone().requires_grad_()
    put_clusters(given, drawn()).sum().backward()
    assert given.grad is not None
    assert set(given.grad.unique().tolist()) == {0.0, 1.0}
