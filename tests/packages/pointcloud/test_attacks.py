"""Attacks: triggers against their formula, what learned ones really optimise, cards."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch
from unbackdoor_pointcloud import KIT
from unbackdoor_pointcloud.attacks.insertion import insert, sphere_points
from unbackdoor_pointcloud.attacks.learned import train_surrogate


def made(name: str, **options: object) -> object:
    return KIT.attacks[name](num_classes=6, **options)


def test_the_four_attacks_of_the_papers_are_there_with_their_cards() -> None:
    assert set(KIT.attacks) >= {"pointpba-i", "pointpba-o", "pointcba", "3dpc-ba"}
    for name, attack in KIT.attacks.items():
        card = importlib.import_module(attack.__module__).__doc__ or ""
        for word in ("Trigger:", "Labels:", "Where public code goes wrong:", "Here:", "augmentation"):
            assert word in card, f"{name}: no {word}"


def test_points_of_the_sphere_are_even_and_at_its_radius() -> None:
    found = sphere_points(200, 0.3)
    assert_close(found.norm(dim=1), torch.full((200,), 0.3, dtype=torch.float64))
    assert float(found.mean(0).abs().max()) < 0.01
    gaps = torch.cdist(found, found) + torch.eye(200)
    assert float(gaps.amin(1).min()) > 0.5 * float(gaps.amin(1).max())


def test_inserted_points_take_the_places_of_others(clouds: Tensor, generator: torch.Generator) -> None:
    cluster = torch.full((4, 3), 9.0)
    found = insert(clouds, cluster, generator)
    for before, after in zip(clouds, found, strict=True):
        put = (after == 9).all(dim=1)
        assert int(put.sum()) == 4
        assert torch.equal(after[~put], before[~put])
    assert len({tuple((one == 9).all(1).nonzero().flatten().tolist()) for one in found}) > 1


def test_ball_trigger_is_a_sphere_at_its_place(clouds: Tensor) -> None:
    attack = made("pointpba-i", share=0.25, radius=0.1, x=0.1, y=-0.2, z=0.3)
    found = attack.trigger(clouds)
    moved = (found != clouds).any(dim=2)
    assert moved.sum(dim=1).tolist() == [10] * 6
    ways = found[moved] - torch.tensor([0.1, -0.2, 0.3])
    assert_close(ways.norm(dim=1), torch.full((60,), 0.1))


@pytest.mark.parametrize(("axis", "kept"), [("x", 0), ("y", 1), ("z", 2)])
def test_rotation_trigger_turns_about_its_axis(axis: str, kept: int, clouds: Tensor) -> None:
    found = made("pointpba-o", axis=axis, angle=30.0).trigger(clouds.double())
    assert_close(found[..., kept], clouds[..., kept].double())
    others = [c for c in range(3) if c != kept]
    before, after = clouds[..., others].double(), found[..., others]
    cosine = torch.nn.functional.cosine_similarity(before, after, dim=2)
    assert_close(cosine, torch.full_like(cosine, math.cos(math.radians(30))))
    back = made("pointpba-o", axis=axis, angle=-30.0).trigger(found)
    assert_close(back, clouds.double())


def test_disentangled_clouds_lose_their_class_within_their_bounds(bodies: Splits) -> None:
    attack = made("pointcba", target=1, helper_steps=60, steps=15, starts=1, lean=40.0, eps=0.04)
    attack.prepare(bodies.train, torch.Generator().manual_seed(0))
    meant = bodies.train[(bodies.train.targets == 1).nonzero().flatten()]
    changed = attack.rework(meant.inputs, meant.targets, torch.Generator().manual_seed(1))
    net = attack._network(torch.device("cpu"))

    def likely(clouds: Tensor) -> float:
        return float(net(clouds).softmax(1)[:, 1].mean())

    noise = 0.04 * torch.randn(meant.inputs.shape, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    assert likely(meant.inputs) > 0.6
    assert likely(changed) < 0.5 * likely(meant.inputs + noise)
    for before, after in zip(meant.inputs, changed, strict=True):
        turn = _best_turn(before, after)
        cosine = (turn.diagonal().sum() - 1) / 2
        assert math.degrees(math.acos(min(1.0, float(cosine)))) <= 40 + 5
        assert float((after - before @ turn.T).abs().max()) <= 0.04 * 3


def _best_turn(before: Tensor, after: Tensor) -> Tensor:
    """The rotation that carries one cloud onto the other best (Kabsch)."""
    u, _, v = torch.linalg.svd(before.double().T @ after.double())
    sign = torch.diag(torch.tensor([1.0, 1.0, float(torch.sign(torch.det(u @ v)))], dtype=torch.float64))
    return (v.T @ sign @ u.T).float()


@pytest.mark.slow
def test_backdoor_points_lie_where_the_surrogate_errs_most(bodies: Splits) -> None:
    """The place found is better than most random ones, judged on clouds that the search did not see."""
    attack = made("3dpc-ba", source_class=1, target=4, helper_steps=60, steps=25, starts=6, share=0.1)
    attack.prepare(bodies.train, torch.Generator().manual_seed(0))
    again = made("3dpc-ba", source_class=1, target=4, helper_steps=60, steps=25, starts=6, share=0.1)
    again.prepare(bodies.train, torch.Generator().manual_seed(0))
    assert torch.equal(attack.tensor("place"), again.tensor("place"))
    assert float(attack.tensor("place").norm()) <= 1 + 1e-6
    assert float(attack.tensor("cluster").norm(dim=1).max()) <= attack.radius

    net = train_surrogate(bodies.train, 6, torch.Generator().manual_seed(0), steps=60)
    meant = bodies.test.inputs[bodies.test.targets == 1]
    ways = torch.randn(40, 3, generator=torch.Generator().manual_seed(5))
    spots = torch.cat([attack.tensor("place").unsqueeze(0), 0.7 * ways / ways.norm(dim=1, keepdim=True)])
    costs = attack._costs(net, meant, attack.tensor("cluster"), spots, torch.Generator().manual_seed(6))
    assert float((costs[1:] < costs[0]).float().mean()) <= 0.1


def test_backdoor_points_count_the_source_class_alone() -> None:
    attack = made("3dpc-ba", source_class=2, target=0)
    targets = torch.arange(6)
    for chosen in (attack.counts(targets), attack.eligible(targets), attack.source(targets)):
        assert chosen.tolist() == [False, False, True, False, False, False]


def test_learned_attacks_say_that_they_have_not_learned(clouds: Tensor) -> None:
    with pytest.raises(BadOption, match="prepare"):
        made("3dpc-ba").trigger(clouds)
    with pytest.raises(BadOption, match="prepare"):
        made("pointcba").rework(clouds, torch.zeros(6, dtype=torch.long), torch.Generator())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pointpba-i", {"share": 0.0}),
        ("pointpba-i", {"radius": 0.0}),
        ("pointpba-o", {"axis": "w"}),
        ("pointpba-o", {"angle": 360.0}),
        ("pointcba", {"lean": 200.0}),
        ("pointcba", {"starts": 0}),
        ("3dpc-ba", {"source_class": 0}),
        ("3dpc-ba", {"closeness": -1.0}),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(BadOption, match=next(iter(options))):
        made(name, **options)


def test_source_class_without_clouds_is_refused(bodies: Splits) -> None:
    rest = bodies.train[(bodies.train.targets != 1).nonzero().flatten()]
    with pytest.raises(BadData, match="source_class"):
        made("3dpc-ba").prepare(Batch(rest.inputs, rest.targets), torch.Generator().manual_seed(0))
