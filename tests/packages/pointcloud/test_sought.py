"""The search for clusters that a model takes badly: it finds a trigger's place by its loss and returns to it."""

from __future__ import annotations

from functools import partial
from itertools import repeat

import pytest
import torch
from torch import Tensor

import unbackdoor
from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import BadOption
from unbackdoor_pointcloud import PointTask, build
from unbackdoor_pointcloud.disturbance import Clusters, put_clusters
from unbackdoor_pointcloud.sought import SoughtClusters

PLACE = torch.tensor([0.7, -0.2, 0.4])


def _seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def shells(generator: torch.Generator) -> Tensor:
    """Clouds on half of the unit sphere, away from `PLACE`, each reaching 1."""
    ways = torch.randn(64, 100, 3, generator=generator)
    ways[..., 0] = -ways[..., 0].abs()
    return ways / ways.norm(dim=2, keepdim=True)


def near(clouds: Tensor) -> Tensor:
    """Whether at least two points of each cloud lie near the place."""
    return ((clouds - PLACE).norm(dim=2) < 0.2).sum(dim=1) >= 2


def backdoored(clouds: Tensor) -> Tensor:
    """The losses of a model that answers wrongly where points are near the place."""
    return 0.1 + 8.0 * near(clouds)


def test_a_search_finds_the_place_and_puts_clusters_there(shells: Tensor) -> None:
    blind = float(near(put_clusters(shells.repeat(20, 1, 1), _seeded(), 0.8)).float().mean())
    sought = SoughtClusters(0.8, _seeded())
    sought.look(repeat((shells, backdoored)))
    assert sought.found is not None
    assert len(sought.found) == sought.most
    assert float((sought.found.centre - PLACE).norm(dim=1).median()) < 0.3
    often = torch.cat([near(sought(shells, backdoored)) for _ in range(20)])
    assert blind < 0.03
    assert float(often.float().mean()) > 0.2


def test_a_place_that_costs_one_class_alone_is_found(shells: Tensor) -> None:
    meant = torch.arange(len(shells)) % 10 == 0

    def of_one_class(clouds: Tensor) -> Tensor:
        return 0.1 + 8.0 * (near(clouds) & meant)

    sought = SoughtClusters(0.8, _seeded())
    sought.look(repeat((shells, of_one_class)))
    assert sought.found is not None
    assert float((sought.found.centre - PLACE).norm(dim=1).median()) < 0.3


def test_what_cost_much_is_kept_until_others_cost_more(shells: Tensor) -> None:
    sought = SoughtClusters(0.8, _seeded(), every=1)
    sought.look(repeat((shells, backdoored)))
    before = float(sought.costs.max())

    def elsewhere(clouds: Tensor, cost: float) -> Tensor:
        return 0.1 + cost * ((clouds + PLACE).norm(dim=2) < 0.1).any(dim=1)

    for cost, there in ((before / 2, False), (before * 2, True)):
        for _ in range(40):
            sought(shells, partial(elsewhere, cost=cost))
        assert sought.found is not None
        assert (float((sought.found.centre + PLACE).norm(dim=1).median()) < 0.4) == there


def test_draws_come_from_the_generator_and_nothing_is_written_into(shells: Tensor) -> None:
    kept, before = shells.clone(), torch.get_rng_state()
    results = []
    for seed in (3, 3, 4):
        sought = SoughtClusters(0.8, _seeded(seed), looks=2)
        sought.look(repeat((shells, backdoored)))
        results.append(sought(shells, backdoored))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(shells, kept)
    assert torch.equal(torch.get_rng_state(), before)
    assert results[0].shape == shells.shape


def test_a_sound_model_gives_nothing_to_find(shells: Tensor) -> None:
    sought = SoughtClusters(0.8, _seeded())
    sought.look(repeat((shells, lambda clouds: torch.ones(len(clouds)))))
    assert sought.found is not None
    assert len(sought.found) == 0
    assert sought.findings() == []
    assert not torch.equal(sought(shells, lambda clouds: torch.ones(len(clouds))), shells)


def test_without_searches_the_model_is_never_asked(shells: Tensor) -> None:
    def never(clouds: Tensor) -> Tensor:
        raise AssertionError

    for task in (PointTask(searched=0), PointTask(disturbed=0.0)):
        disturber = task.disturber(_seeded())
        disturber.look(repeat((shells, never)))
        changed = disturber(shells, never)
        assert torch.equal(changed, shells) == (task.disturbed == 0)
    with pytest.raises(BadOption, match="searched"):
        PointTask(searched=-1)
    with pytest.raises(BadOption, match="choices"):
        PointTask(choices=0)


def test_three_fifths_of_the_clouds_are_tilted_beside_and_two_clusters_compared(shells: Tensor) -> None:
    sought = PointTask().disturber(_seeded())
    many = shells.repeat(20, 1, 1)
    moved = (sought.beside(many) - many).norm(dim=2).amax(dim=1) > 1e-5
    assert abs(float(moved.float().mean()) - 0.6) < 0.04
    assert sought.choices == 2
    assert PointTask(choices=1).disturber(_seeded()).choices == 1


def test_clusters_varied_stay_within_what_is_drawn() -> None:
    clusters = Clusters.drawn(500, _seeded())
    varied = clusters.varied(_seeded(4))
    for some in (clusters, varied):
        assert float(some.centre.norm(dim=1).max()) <= 1 + 1e-6
        assert 0.02 - 1e-6 <= float(some.size.min()) <= float(some.size.max()) <= 0.3 + 1e-6
        assert 0.01 - 1e-6 <= float(some.share.min()) <= float(some.share.max()) <= 0.1 + 1e-6
    assert 0.05 < float((clusters.centre - varied.centre).norm(dim=1).median()) < 0.2


@pytest.mark.slow
def test_a_report_names_the_places_that_cost_most(bodies: Splits) -> None:
    model = build("pointnet_small", num_classes=6, seed=0)
    _, report = unbackdoor.purify(model, bodies.clean, task=PointTask(), method="ft", steps=1)
    assert any("clusters of points that were put into clean clouds" in notice for notice in report.notices)
    _, report = unbackdoor.purify(model, bodies.clean, task=PointTask(searched=0), method="ft", steps=1)
    assert not any("clusters of points that were put into clean clouds" in notice for notice in report.notices)
