"""Sampling, neighbours, grouping and interpolation against loops, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unbackdoor_pointcloud.geometry import (
    ball_query,
    farthest_points,
    group,
    interpolate,
    nearest,
    pick,
    squared_distances,
    three_nearest,
)

SIZES = [(1, 5, 3), (3, 50, 7), (2, 33, 33)]


def places(batch: int, count: int) -> Tensor:
    return torch.randn(batch, 3, count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)


def apart(a: Tensor, b: Tensor) -> float:
    return float(((a - b) ** 2).sum())


@pytest.mark.parametrize(("batch", "count", "wanted"), SIZES)
def test_farthest_points_are_those_of_the_definition(batch: int, count: int, wanted: int) -> None:
    points = places(batch, count)
    found = farthest_points(points, wanted, start=2)
    for b in range(batch):
        chosen = [2]
        while len(chosen) < wanted:
            gaps = [min(apart(points[b, :, n], points[b, :, c]) for c in chosen) for n in range(count)]
            chosen.append(max(range(count), key=lambda n: gaps[n]))
        assert found[b].tolist() == chosen


def test_farthest_points_refuse_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="count is 6"):
        farthest_points(places(1, 5), 6)


@pytest.mark.parametrize(("batch", "count", "wanted"), SIZES)
@pytest.mark.parametrize("radius", [0.05, 0.8, 10.0])
def test_ball_query_takes_the_first_points_within_the_radius(
    batch: int, count: int, wanted: int, radius: float
) -> None:
    points = places(batch, count)
    centres = torch.cat([points[:, :, :2], places(batch, wanted) + 1], dim=2)
    neighbours = 4
    found = ball_query(points, centres, radius, neighbours)
    assert found.shape == (batch, wanted + 2, neighbours)
    for b in range(batch):
        for m in range(wanted + 2):
            gaps = [apart(points[b, :, n], centres[b, :, m]) for n in range(count)]
            inside = [n for n in range(count) if gaps[n] <= radius**2]
            first = inside[0] if inside else min(range(count), key=lambda n: gaps[n])
            expected = (inside + [first] * neighbours)[:neighbours] if inside else [first] * neighbours
            assert found[b, m].tolist() == expected


def test_ball_query_fills_up_where_a_cloud_has_fewer_points_than_neighbours() -> None:
    points = places(2, 3)
    found = ball_query(points, points[:, :, :1], 100.0, 5)
    assert found.tolist() == [[[0, 1, 2, 0, 0]]] * 2


def test_ball_query_counts_the_border_as_inside() -> None:
    points = torch.tensor([[[0.0, 3.0, 3.5], [0.0, 4.0, 4.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    assert ball_query(points, points[:, :, :1], 5.0, 3).tolist() == [[[0, 1, 0]]]


@pytest.mark.parametrize("channels", [3, 20])
def test_nearest_are_those_of_a_sort(channels: int) -> None:
    draw = torch.Generator().manual_seed(1)
    points = torch.randn(3, channels, 30, generator=draw, dtype=torch.float64)
    centres = torch.randn(3, channels, 4, generator=draw, dtype=torch.float64)
    found = nearest(points, centres, 6)
    for b in range(3):
        for m in range(4):
            expected = sorted(range(30), key=lambda n: apart(points[b, :, n], centres[b, :, m]))[:6]
            assert found[b, m].tolist() == expected


@pytest.mark.parametrize("channels", [1, 3, 8, 9, 64])
def test_squared_distances_are_those_of_cdist(channels: int) -> None:
    draw = torch.Generator().manual_seed(2)
    first = torch.randn(2, channels, 7, generator=draw, dtype=torch.float64)
    second = torch.randn(2, channels, 5, generator=draw, dtype=torch.float64)
    expected = torch.cdist(first.transpose(1, 2), second.transpose(1, 2)) ** 2
    assert_close(squared_distances(first, second), expected)


def test_picked_and_grouped_values_are_those_at_the_index() -> None:
    values = places(2, 9)
    index = torch.tensor([[0, 8, 8], [3, 2, 1]])
    assert_close(pick(values, index), torch.stack([values[b][:, index[b]] for b in range(2)]))
    many = torch.randint(0, 9, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    assert_close(group(values, many), torch.stack([values[b][:, many[b]] for b in range(2)]))


def test_interpolation_weighs_three_nearest_by_inverse_squares() -> None:
    points, known = places(2, 6), places(2, 11)
    features = torch.randn(2, 4, 11, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = interpolate(features, *three_nearest(points, known))
    for b in range(2):
        for n in range(6):
            gaps = [apart(points[b, :, n], known[b, :, k]) for k in range(11)]
            near = sorted(range(11), key=lambda k: gaps[k])[:3]
            total = sum(1 / gaps[k] for k in near)
            expected = sum(features[b, :, k] / gaps[k] / total for k in near)
            assert_close(found[b, :, n], expected)


def test_interpolation_at_known_points_gives_their_features() -> None:
    known = places(1, 8)
    features = places(1, 8)
    assert_close(interpolate(features, *three_nearest(known, known)), features)
    assert three_nearest(known, known[:, :, :2])[0].shape == (1, 8, 2)


def test_geometry_can_be_mapped_over_samples() -> None:
    """Per-sample gradients map the network over the batch; a loop over samples is the oracle."""
    points = places(4, 20)

    def grouped(one: Tensor) -> Tensor:
        cloud = one.unsqueeze(0)
        centres = pick(cloud, farthest_points(cloud, 5))
        return group(cloud, ball_query(cloud, centres, 1.0, 4)).squeeze(0)

    mapped = torch.func.vmap(grouped)(points)
    assert_close(mapped, torch.stack([grouped(one) for one in points]))


def test_geometry_is_one_graph_for_the_compiler() -> None:
    """No graph break, and the same answers; the backend runs the captured graph as it is."""

    def grouped(points: Tensor) -> Tensor:
        centres = pick(points, farthest_points(points, 5))
        return group(points, ball_query(points, centres, 1.0, 4)) - centres.unsqueeze(3)

    points = places(2, 20)
    torch._dynamo.reset()
    compiled = torch.compile(grouped, fullgraph=True, backend="eager")
    assert_close(compiled(points), grouped(points))
