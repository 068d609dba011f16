"""Clusters that the tuned model takes badly: places sought by their loss, and put in more often than others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from unbackdoor.task import Losses
from unbackdoor.tree import Tree
from unbackdoor_pointcloud.disturbance import Clusters, put_clusters, tilt

__all__ = ["SoughtClusters"]

_LISTED = 5
"""Clusters that a report names."""


@dataclass
class SoughtClusters:
    """The disturber of clouds: a cluster in a share of them, at a new place or at one that was found to cost much.

    Any one place comes up rarely among new ones, and most clusters near it are too large or too sparse to look like a
    trigger that lies there. But a trigger betrays itself by the loss that it brings. So now and then many clusters
    are tried, each in one cloud, in forward passes, new ones and others like those found before, and those that cost
    most are put in again, the dearer the more often. What cost much once is kept for some time after the model has
    learned to overlook it, since it would turn back.

    Attributes:
        rate: Probability of a cluster; half of it is that of a tilt.
        generator: Every draw comes from it.
        looks: Searches before anything is tuned.
        every: Batches from one search to the next.
        passes: Forward passes of a search; each tries one cluster in each cloud of the batch.
        sought: Share of the clusters put in that were found by searches.
        most: How many are remembered.
        fading: What is left of a remembered cost from one search to the next.
        found: The remembered ones, the dearest first; None before the first search.
        costs: What each cost in the cloud in which it was tried, in nats, faded; ``(found,)``.
    """

    rate: float
    generator: torch.Generator
    looks: int = 12
    every: int = 40
    passes: int = 8
    sought: float = 0.7
    most: int = 48
    fading: float = 0.9
    found: Clusters | None = None
    costs: Tensor = field(default_factory=lambda: torch.empty(0))
    _met: int = field(default=0, repr=False)
    _worst: list[tuple[float, list[float]]] = field(default_factory=list, repr=False)

    def look(self, samples: Iterator[tuple[Tree, Losses]]) -> None:
        """Search the given model, whose trigger is whole yet."""
        for inputs, losses in islice(samples, self.looks if self._searches else 0):
            self._search(inputs, losses)

    def __call__(self, inputs: Tree, losses: Losses) -> Tensor:
        """Clouds with clusters and tilts."""
        clouds = tilt(inputs, self.generator, self.rate / 2)
        if self._searches and self._met % self.every == 0:
            self._search(inputs, losses)
        self._met += 1
        return put_clusters(clouds, self.generator, self.rate, self._chosen(len(clouds)))

    def findings(self) -> list[str]:
        """Where the clusters lay that cost most: the nearest thing to a trigger that clean clouds can tell of."""
        if not self._worst:
            return []
        listed = ", ".join(f"({', '.join(f'{x:.2f}' for x in place)}) {cost:.1f}" for cost, place in self._worst)
        said = (
            "of the clusters that were tried, these cost the model most in some cloud (their place as a share of the "
            f"cloud's radius, and nats): {listed}. Places that are close to each other may be that of a trigger."
        )
        return [said]

    @property
    def _searches(self) -> bool:
        return self.rate > 0 and self.passes > 0

    def _chosen(self, count: int) -> Clusters:
        """One for each of ``count`` clouds: a new one or one that was found."""
        new = Clusters.drawn(count, self.generator)
        if self.found is None or len(self.found) == 0:
            return new
        again = self._again(count)
        mine = torch.rand(count, generator=self.generator, device=self.generator.device) < self.sought
        pick = torch.arange(count, device=mine.device) + count * mine
        return Clusters.joined([new, again])[pick]

    def _again(self, count: int) -> Clusters:
        assert self.found is not None
        return self.found[self.costs.multinomial(count, replacement=True, generator=self.generator)]

    def _search(self, inputs: Tree, losses: Losses) -> None:
        """Try new clusters, those known and others like them."""
        plain = losses(inputs)
        tried, costs = [], []
        for turn in range(self.passes):
            some = self._candidates(len(plain), turn)
            cost = losses(put_clusters(inputs, self.generator, 1.0, some)) - plain
            tried.append(some)
            costs.append(cost.to(self.generator.device))
        self._note(Clusters.joined(tried), torch.cat(costs))
        if self.found is not None:
            tried.append(self.found)
            costs.append(self.fading * self.costs)
        self.found, self.costs = _dearest(Clusters.joined(tried), torch.cat(costs), self.most)

    def _note(self, tried: Clusters, costs: Tensor) -> None:
        """Keep the dearest of all times for the report."""
        best, cost = _dearest(tried, costs, _LISTED)
        listed = self._worst + list(zip(cost.tolist(), best.centre.tolist(), strict=True))
        self._worst = sorted(listed, reverse=True)[:_LISTED]

    def _candidates(self, count: int, turn: int) -> Clusters:
        """New ones in every second pass, else known ones varied."""
        if turn % 2 == 0 or self.found is None or len(self.found) == 0:
            return Clusters.drawn(count, self.generator)
        return self._again(count).varied(self.generator)


def _dearest(clusters: Clusters, costs: Tensor, most: int) -> tuple[Clusters, Tensor]:
    """Those of highest cost and their costs, the dearest first; none that costs nothing."""
    best = costs.topk(min(most, len(costs)))
    keep = (best.values > 0) & best.values.isfinite()
    return clusters[best.indices[keep]], best.values[keep]
