"""Random clusters and tilts: drawn from the generator alone, of the form that came in, nothing written into."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unbackdoor.errors import BadOption
from unbackdoor_pointcloud import PointTask
from unbackdoor_pointcloud.disturbance import disturbance, put_clusters, tilt


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture
def shells(generator: torch.Generator) -> Tensor:
    ways = torch.randn(300, 200, 3, generator=generator)
    return ways / ways.norm(dim=2, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_disturbance_is_drawn_from_the_generator_alone_and_keeps_the_form(clouds: Tensor, dtype: torch.dtype) -> None:
    given = clouds.to(dtype)
    kept, before = given.clone(), torch.get_rng_state()
    first, again = (disturbance(given, _seeded()) for _ in range(2))
    other = disturbance(given, torch.Generator().manual_seed(4))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(given, kept)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, given)
    assert (first.shape, first.dtype, first.device) == (given.shape, given.dtype, given.device)
    assert bool(torch.isfinite(first).all())


def test_clusters_take_a_few_points_of_as_many_clouds_as_the_rate_says(shells: Tensor) -> None:
    moved = (put_clusters(shells, _seeded(), 0.6) != shells).any(dim=2).sum(dim=1)
    hit = moved > 0
    assert float(hit.float().mean()) == pytest.approx(0.6, abs=0.1)
    assert int(moved[hit].min()) >= 2
    assert int(moved[hit].max()) <= 20
    assert int(moved[hit].max()) >= 18
    assert torch.equal(put_clusters(shells, _seeded(), 0.0), shells)


def test_clusters_are_small_and_lie_anywhere_within_reach(shells: Tensor) -> None:
    found = put_clusters(5 * shells, _seeded(), 1.0)
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
    found = tilt(shells, _seeded(), 0.5)
    hit = (found != shells).flatten(1).any(dim=1)
    assert float(hit.float().mean()) == pytest.approx(0.5, abs=0.1)
    for before, after in zip(shells[hit].double(), found[hit].double(), strict=True):
        change = torch.linalg.lstsq(before, after).solution
        assert_close(before @ change, after, atol=1e-5, rtol=0)  # one linear map
        left, _, right = torch.linalg.svd(change)
        cosine = (float((left @ right).trace()) - 1) / 2
        assert math.degrees(math.acos(max(-1.0, min(1.0, cosine)))) < 30 + 20
    assert torch.equal(tilt(shells, _seeded(), 0.0), shells)


def test_task_disturbs_at_its_own_rate(clouds: Tensor) -> None:
    kept = clouds.clone()
    assert torch.equal(PointTask(disturbed=0.0).disturb(clouds, _seeded()), clouds)
    assert torch.equal(PointTask(disturbed=0.5).disturb(clouds, _seeded()), disturbance(clouds, _seeded(), rate=0.5))
    assert torch.equal(clouds, kept)
    with pytest.raises(BadOption, match="disturbed"):
        PointTask(disturbed=1.5)


def test_gradients_pass_to_the_points_that_stay(clouds: Tensor) -> None:
    given = clouds.clone().requires_grad_()
    put_clusters(given, _seeded(), 1.0).sum().backward()
    assert given.grad is not None
    assert set(given.grad.unique().tolist()) == {0.0, 1.0}
