"""What is sought by its loss: numbers put into rows, of which one stands for a trigger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from unbackdoor.defender.seeker import Seeker

TRIGGER = 0.77


@dataclass(frozen=True)
class Numbers:
    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor) -> Numbers:
        return Numbers(self.values[index])

    def varied(self, generator: torch.Generator) -> Numbers:
        return Numbers(self.values + 0.02 * torch.randn(self.values.shape, generator=generator))


@dataclass
class SoughtNumbers(Seeker[Numbers]):
    """Adds numbers of [0, 1) to the second column; the first is doubled beside."""

    def drawn(self, inputs: Tensor) -> Numbers:
        return Numbers(torch.rand(len(inputs), generator=self.generator))

    def put(self, inputs: Tensor, attempts: Numbers, rate: float) -> Tensor:
        chosen = torch.rand(len(inputs), generator=self.generator) < rate
        return torch.stack([inputs[:, 0], torch.where(chosen, attempts.values, inputs[:, 1])], 1)

    def joined(self, parts: Sequence[Numbers]) -> Numbers:
        return Numbers(torch.cat([part.values for part in parts]))

    def said(self, worst: Numbers, costs: Tensor) -> str:
        return " ".join(f"{value:.2f}:{cost:.2f}" for value, cost in zip(worst.values, costs, strict=True))

    def beside(self, inputs: Tensor) -> Tensor:
        return inputs * torch.tensor([2.0, 1.0])


def losses(read: Tensor) -> Tensor:
    """High where the second column is near the trigger."""
    return 1.0 + (1 - 20 * (read[:, 1] - TRIGGER).abs()).clamp(min=0)


def seeker(**words) -> SoughtNumbers:
    return SoughtNumbers(0.8, torch.Generator().manual_seed(0), **words)


@pytest.fixture
def rows() -> Tensor:
    return torch.ones(64, 2) * -1


def test_what_costs_most_is_found_and_put_in_again(rows: Tensor) -> None:
    sought = seeker()
    sought.look(repeat((rows, losses)))
    assert sought.found is not None
    assert len(sought.found) == 48
    assert float((sought.found.values - TRIGGER).abs().max()) < 0.05
    assert torch.equal(sought.costs, sought.costs.sort(descending=True).values)
    read = torch.cat([sought(rows, losses) for _ in range(50)])
    assert bool((read[:, 0] == -2).all()), "what is done beside is done to all"
    changed = read[:, 1] != -1
    assert abs(float(changed.float().mean()) - 0.8) < 0.03
    near = (read[changed, 1] - TRIGGER).abs() < 0.05
    assert 0.5 < float(near.float().mean()) < 0.65, "half of them, and what new ones hit"


def test_the_dearer_comes_more_often(rows: Tensor) -> None:
    sought = seeker(sought=1.0, passes=1, every=1000)
    sought.found, sought.costs = Numbers(torch.tensor([2.0, 3.0])), torch.tensor([3.0, 1.0])
    sought._met = 1
    read = torch.cat([sought(rows, losses) for _ in range(50)])[:, 1]
    often, seldom = (int((read == value).sum()) for value in (2.0, 3.0))
    assert abs(often / seldom - 3) < 0.5


def test_costs_are_measured_against_the_plain_sample_and_kept(rows: Tensor) -> None:
    sought = seeker(every=1)
    sought.look(repeat((rows, losses)))
    highest = float(sought.costs[0])
    assert 0.9 < highest <= 1.0, "the loss of a plain row is 1"
    sought(rows, lambda read: torch.ones(len(read)))
    assert float(sought.costs[0]) == highest, "the tuned model has learned to overlook it and would turn back"
    assert sought.findings()[0].startswith("0.7"), "the dearest of all times are told of"
    assert len(sought.findings()[0].split()) == 5


def test_a_task_may_let_costs_fade(rows: Tensor) -> None:
    sought = seeker(every=1, fading=0.5)
    sought.look(repeat((rows, losses)))
    before = sought.costs
    sought(rows, lambda read: torch.ones(len(read)))
    assert_close(sought.costs, before / 2)


def test_what_is_left_of_what_was_found_in_the_given_model(rows: Tensor) -> None:
    sought = seeker(every=1)
    assert sought.left(rows, losses) is None, "nothing was sought yet"
    sought.look(repeat((rows, losses)))
    state = sought.generator.get_state()
    cost = sought.left(rows, losses)
    assert torch.equal(sought.generator.get_state(), state), "the purification's draws are its own"
    assert cost.shape == (64,)
    assert abs(float(cost.mean()) - float((sought.costs**2).sum() / sought.costs.sum())) < 0.01, "dearer ones oftener"
    sought(rows, lambda read: 9 * read[:, 1])
    assert bool((sought.costs > 2).any()), "the tuned model takes other things worse"
    assert torch.equal(sought.left(rows, losses), cost), "the same draws of what the given one took badly"
    assert float(sought.left(rows, lambda read: torch.ones(len(read))).abs().max()) == 0
    for other in (seeker(passes=0), seeker(fading=0.9)):
        other.look(repeat((rows, losses)))
        assert other.left(rows, losses) is None


def test_what_is_left_is_weighed_by_what_each_thing_cost_the_given_model(rows: Tensor) -> None:
    class TwoThings(SoughtNumbers):
        def drawn(self, inputs: Tensor) -> Numbers:
            return Numbers(torch.arange(len(inputs)) % 2.0 + 2)

    sought = TwoThings(0.8, torch.Generator().manual_seed(0), passes=1)
    once = iter([(rows, lambda read: torch.where(read[:, 1] == 2, 3.0, torch.where(read[:, 1] == 3, 1.0, 0.0)))])
    sought.look(once)
    assert sought.costs.tolist() == [3.0] * 32 + [1.0] * 16
    dear = sought.left(rows, lambda read: (read[:, 1] == 2).float())
    assert float(dear.mean()) == pytest.approx(96 / 112, abs=0.05), "not 32 / 48"


@pytest.mark.parametrize("words", [{"passes": 0}, {"rate": 0.0}])
def test_without_searches_the_model_is_never_asked(rows: Tensor, words: dict) -> None:
    def never(read: Tensor) -> Tensor:
        raise AssertionError

    sought = seeker()
    for name, value in words.items():
        setattr(sought, name, value)
    sought.look(repeat((rows, never)))
    read = sought(rows, never)
    assert bool((read[:, 1] != -1).any()) == (sought.rate > 0)
    assert sought.findings() == []


def test_searches_come_every_so_many_batches(rows: Tensor) -> None:
    asked = []

    def counted(read: Tensor) -> Tensor:
        asked.append(len(read))
        return losses(read)

    sought = seeker(every=5, passes=3)
    for _ in range(11):
        sought(rows, counted)
    assert len(asked) == 3 * (1 + 3), "before batches 0, 5 and 10: the plain rows, then three passes"


def test_of_several_things_each_sample_gets_what_costs_it_most(rows: Tensor) -> None:
    """Rows of two kinds, to which small and large numbers cost most."""
    low = torch.arange(len(rows)) % 2 == 0

    def by_kind(read: Tensor) -> Tensor:
        return torch.where(low, 1 - read[:, 1], read[:, 1])

    means = []
    for choices in (1, 3):
        sought = seeker(choices=choices, sought=0.0)
        sought.rate = 1.0
        read = torch.stack([sought(rows, by_kind)[:, 1] for _ in range(50)])
        means.append((float(read[:, low].mean()), float(read[:, ~low].mean())))
    assert means[0] == pytest.approx((0.5, 0.5), abs=0.03)
    assert means[1] == pytest.approx((0.25, 0.75), abs=0.03), "the least and the largest of three, on average"


def test_what_costs_nothing_or_no_number_is_not_kept(rows: Tensor) -> None:
    sought = seeker()
    sought.look(repeat((rows, lambda read: torch.ones(len(read)))))
    assert sought.found is not None
    assert len(sought.found) == 0
    assert sought.findings() == []
    broken = seeker(looks=1)
    broken.look(repeat((rows, lambda read: torch.where(read[:, 1] < 0, 1.0, torch.inf))))
    assert broken.found is not None
    assert len(broken.found) == 0


def test_draws_come_from_the_generator_alone(rows: Tensor) -> None:
    before, kept, read = torch.get_rng_state(), rows.clone(), []
    for _ in range(2):
        sought = seeker(looks=2)
        sought.look(repeat((rows, losses)))
        read.append(sought(rows, losses))
    assert torch.equal(*read)
    assert torch.equal(rows, kept)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_known_is_varied_in_search_of_something_dearer(rows: Tensor) -> None:
    class Stuck(SoughtNumbers):
        def drawn(self, inputs: Tensor) -> Numbers:
            return Numbers(torch.full((len(inputs),), TRIGGER - 0.04))

    sought = Stuck(0.8, torch.Generator().manual_seed(0))
    sought.look(repeat((rows, losses)))
    assert sought.found is not None
    assert float((sought.found.values - TRIGGER).abs().max()) < 0.01


@pytest.mark.parametrize(
    ("looks", "costs", "made"),
    [
        (4, [1.0] * 20, 4),
        (4, [1, 1, 1, 1.3, 1.3, 1.3, 1.35, 1.35, 1.35], 6),  # a tenth dearer after four, not after six
        (4, [1, 1, 1, 1.05, 1.05, 9], 4),
        (4, [2.0**turn for turn in range(30)], 16),  # four times as many at most
        (4, [1, 1, 0, 0, 0, 0], 4),
        (4, [-1.0] * 20, 4),  # nothing costs anything
        (1, [1, 2, 2, 2], 3),
        (3, [1, 1, 2, 2, 2], 4),
    ],
)
def test_the_given_model_is_searched_while_that_makes_things_dearer(
    rows: Tensor, looks: int, costs: list[float], made: int
) -> None:
    sought, searches = seeker(looks=looks, most=1), []

    def tried(inputs: Tensor, losses: object):
        searches.append(len(searches))
        yield Numbers(torch.zeros(len(inputs))), torch.full((len(inputs),), float(costs[len(searches) - 1]))

    sought.tried = tried  # type: ignore[method-assign]
    sought.look(repeat((rows, losses)))
    assert len(searches) == made
