"""Disturbances that the tuned model takes badly: sought by their loss, and put in more often than others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from unbackdoor.task import Losses
from unbackdoor.tree import Tree, first_dim

__all__ = ["Attempts", "Seeker"]

_LISTED = 5
"""Attempts that a report names."""
_MOST_LOOKS = 4
_DEARER = 1.1
_TIMES = 8
"""Things that are put into each sample to learn what is left."""


class Attempts(Protocol):
    """Things to put into samples, one for each of ``n``."""

    def __len__(self) -> int:
        """``n``."""

    def __getitem__(self, index: Tensor) -> Self:
        """Some of them, by index or mask."""

    def varied(self, generator: torch.Generator) -> Self:
        """As many others, each a little off."""


A = TypeVar("A", bound=Attempts)


@dataclass
class Seeker(ABC, Generic[A]):
    """A disturber that puts something into a share of the samples: a new thing, or one that was found to cost much.

    Any one trigger comes up rarely among new things, and would be met a few times in a purification. But it betrays
    itself by the loss that it brings to whatever sample it lies in. So now and then many things are tried, each in one
    sample, in forward passes, new ones and others like those found before, and those that cost most are put in again,
    the dearer the more often. Unless costs fade, what cost much once is kept to the end, mostly of the given
    model: the tuned one soon overlooks a trigger, finds other things dearer, and would turn back.

    A task says what is put in by four methods: `drawn`, `put`, `joined` and `said`. Where attempts can be improved
    otherwise than by chance it overrides `tried` too.

    Attributes:
        rate: Probability that something is put into a sample.
        generator: Every draw comes from it.
        passes: Of a search; each tries one thing in each sample of the batch. 0: nothing is sought.
        looks: Searches before anything is tuned, at least; see `look`.
        every: Batches from one search to the next.
        sought: Share of what is put in that was found by searches.
        most: How many are remembered.
        choices: Of so many things each sample gets the one that costs it most, a forward pass each if there are
            several. A trigger that means the samples of one class lies in few of those that it is put into.
        fading: What is left of a remembered cost from one search to the next; 1 keeps what cost the given model much.
        found: The remembered ones, the dearest first; None before the first search.
        costs: What each cost where it was tried, ``(found,)``: nats, unless a task weighs them otherwise in `tried`.
    """

    rate: float
    generator: torch.Generator
    passes: int = 8
    looks: int = 12
    every: int = 40
    sought: float = 0.5
    most: int = 48
    choices: int = 1
    fading: float = 1.0
    found: A | None = None
    costs: Tensor = field(default_factory=lambda: torch.empty(0))
    _met: int = field(default=0, repr=False)
    _given: tuple[A, Tensor] | None = field(default=None, repr=False)
    _worst: A | None = field(default=None, repr=False)
    _highest: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    @abstractmethod
    def drawn(self, inputs: Tree) -> A:
        """Something new for each of the samples."""

    @abstractmethod
    def put(self, inputs: Tree, attempts: A, rate: float) -> Tree:
        """Samples of which a share ``rate`` holds its attempt, the others as they are; nothing is written into."""

    @abstractmethod
    def joined(self, parts: Sequence[A]) -> A:
        """One after the other."""

    @abstractmethod
    def said(self, worst: A, costs: Tensor) -> str:
        """What a report says of those that cost most of all that were tried, the dearest first."""

    def beside(self, inputs: Tree) -> Tree:
        """What is done to samples beside, without a search; by default nothing."""
        return inputs

    def tried(self, inputs: Tree, losses: Losses) -> Iterator[tuple[A, Tensor]]:
        """What one search tries, with what each costs in nats, ``(n,)``: here another thing in each sample and pass.

        New things take turns with known ones, varied.
        """
        plain = losses(inputs)
        for turn in range(self.passes):
            fresh = turn % 2 == 0 or self.found is None or len(self.found) == 0
            some = self.drawn(inputs) if fresh else self.again(first_dim(inputs)).varied(self.generator)
            yield some, losses(self.put(inputs, some, 1.0)) - plain

    def again(self, count: int) -> A:
        """As many of the remembered ones, of which there must be one, the dearer the more often."""
        assert self.found is not None
        return self.found[self.costs.multinomial(count, replacement=True, generator=self.generator)]

    def look(self, samples: Iterator[tuple[Tree, Losses]]) -> None:
        """Search the given model, whose trigger is whole yet.

        A trigger is met by chance, and then the things near it get dearer from search to search. So after `looks`
        searches half as many follow, again and again, while the last ones made what is remembered a tenth dearer on
        average, up to four times `looks` in all.
        """
        part, before = max(1, self.looks // 2), 0.0
        for turn, (inputs, losses) in enumerate(islice(samples, _MOST_LOOKS * self.looks if self._searches else 0), 1):
            self._search(inputs, losses)
            if turn % part == 0:
                now = float(self.costs.mean()) if len(self.costs) else 0.0
                if turn >= self.looks and now <= _DEARER * before:
                    break
                before = now
        if self.fading == 1 and self.found is not None and len(self.found):
            self._given = self.found, self.costs

    def __call__(self, inputs: Tree, losses: Losses) -> Tree:
        """The samples with new and with dear things in them."""
        changed = self.beside(inputs)
        if self._searches and self._met % self.every == 0:
            self._search(inputs, losses)
        self._met += 1
        return self.put(changed, self._dearer(changed, losses), self.rate)

    def left(self, inputs: Tree, losses: Losses) -> Tensor | None:
        """What was found by `look` is put into every sample, several times, the dearer the more often.

        None where costs fade, too: what was found in the given model is not believed to the end then.
        """
        if self._given is None:
            return None
        some, costs = self._given
        kept, self.generator = self.generator, torch.Generator(self.generator.device).manual_seed(0)
        try:
            plain, mean = losses(inputs), torch.zeros(first_dim(inputs), device=kept.device)
            for _ in range(_TIMES):
                again = some[costs.multinomial(len(mean), replacement=True, generator=self.generator)]
                mean += (losses(self.put(inputs, again, 1.0)) - plain).to(mean) / _TIMES
        finally:
            self.generator = kept
        return mean

    def findings(self) -> list[str]:
        """The nearest thing to a trigger that clean samples can tell of; empty where nothing cost anything."""
        return [] if self._worst is None or len(self._worst) == 0 else [self.said(self._worst, self._highest)]

    @property
    def _searches(self) -> bool:
        return self.rate > 0 and self.passes > 0

    def _dearer(self, inputs: Tree, losses: Losses) -> A:
        """For each sample the one of `choices` that costs it most."""
        options = [self._chosen(inputs) for _ in range(self.choices if self._searches else 1)]
        if len(options) == 1:
            return options[0]
        costs = torch.stack([losses(self.put(inputs, some, 1.0)) for some in options]).to(self.generator.device)
        places = torch.arange(len(options[0]), device=costs.device)
        return self.joined(options)[costs.argmax(0) * len(places) + places]

    def _chosen(self, inputs: Tree) -> A:
        """One for each sample: a new one or one that was found."""
        new = self.drawn(inputs)
        if self.found is None or len(self.found) == 0:
            return new
        count = len(new)
        again = self.again(count)
        mine = torch.rand(count, generator=self.generator, device=self.generator.device) < self.sought
        pick = torch.arange(count, device=mine.device) + count * mine
        return self.joined([new, again])[pick]

    def _search(self, inputs: Tree, losses: Losses) -> None:
        """Remember what was tried and is dear."""
        tried = [(some, costs.detach().to(self.generator.device)) for some, costs in self.tried(inputs, losses)]
        self._worst, self._highest = self._dearest([(self._worst, self._highest), *tried], _LISTED)
        self.found, self.costs = self._dearest([*tried, (self.found, self.fading * self.costs)], self.most)

    def _dearest(self, known: Sequence[tuple[A | None, Tensor]], most: int) -> tuple[A, Tensor]:
        """Those of highest cost and their costs, the dearest first; none that costs nothing."""
        attempts = self.joined([some for some, _ in known if some is not None])
        costs = torch.cat([cost for some, cost in known if some is not None])
        best = costs.topk(min(most, len(costs)))
        keep = (best.values > 0) & best.values.isfinite()
        return attempts[best.indices[keep]], best.values[keep]
