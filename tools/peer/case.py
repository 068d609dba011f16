"""What both sides get: a victim, its clean samples in the forms of both, a clock, and the rows of ours."""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import unbackdoor
from unbackdoor.attacker.plan import Scene
from unbackdoor.data import CleanSet
from unbackdoor.defender.purifier import Progress
from unbackdoor.evaluate import evaluate
from unbackdoor.registry import method
from unbackdoor.task import Batch

ITS_STEPS = {"anp": 2000, "ft-sam": 1000, "nad": 1000, "fine-pruning": 1000, "i-bau": 50}
"""Of the peer's own configuration: 2,000 of ANP, 100 epochs of 2,500 images in batches of 256, 5 rounds of I-BAU."""


class Case:
    """What both sides get."""

    def __init__(self, scene: Scene, arguments: argparse.Namespace) -> None:
        """Nothing is copied yet."""
        self.model, self.data, self.task = scene.victim.model, scene.data, scene.task
        self.attack = scene.victim.attack
        self.asked, self.size, self.seed = arguments.steps, arguments.batch_size, arguments.seed
        self.repeats, self.folder = arguments.repeats, arguments.peer

    def resized(self, size: int) -> Case:
        """The same with batches of at least ``size``."""
        other = copy.copy(self)
        other.size = max(self.size, size)
        return other

    def steps(self, name: str) -> int:
        """How many both sides run: as asked, or the peer's own number."""
        return self.asked or ITS_STEPS[name]

    def measured(self, model: nn.Module) -> dict[str, float]:
        """Figures on the test part, in percent."""
        figures = evaluate(model, self.data.test, self.task, self.attack)
        return {name: round(value, 2) for name, value in figures.items()}

    def draw(self) -> Iterator[tuple[Tensor, ...]]:
        """Batches in the form that the peer unpacks: images, labels, indices, flags of poison, labels again.

        The images are augmented and normalised as our task would.
        """
        generator = torch.Generator().manual_seed(self.seed)
        for drawn in CleanSet(self.data.clean).batches(self.size, generator):
            batch: Batch = self.task.augment(drawn, generator, mix=0.0)
            seen: list[Tensor] = []
            self.task.forward(_Ear(seen), batch.inputs)
            index = torch.arange(len(batch))
            yield seen[0], batch.targets, index, torch.zeros_like(index), batch.targets

    def loader(self, steps: int) -> list[tuple[Tensor, ...]]:
        """As many batches."""
        return list(itertools.islice(self.draw(), steps))

    def clock(self, work: Callable[[int], object]) -> float:
        """Seconds of processor time a step: the smallest over the repeats of 20 steps, after 3 to warm up."""
        work(3)
        best = float("inf")
        for _ in range(self.repeats):
            start = time.process_time()
            work(20)
            best = min(best, (time.process_time() - start) / 20)
        return best


class _Ear(nn.Module):
    """Notes what a model would be given."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, given: Tensor) -> Tensor:
        self.seen.append(given)
        return given.flatten(1)


class Epochs:
    """A loader of ``batches`` fresh batches each time that it is read."""

    def __init__(self, case: Case, batches: int) -> None:
        """Nothing is drawn yet."""
        self.drawn, self.batches = case.draw(), batches

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """One epoch."""
        return itertools.islice(self.drawn, self.batches)


def ours(case: Case, name: str, title: str, **options: Any) -> dict[str, Any]:
    """A row of our method; its step time is that of the steps alone, between two reports of its progress."""
    known = method(name).__dataclass_fields__
    given = {key: value for key, value in options.items() if key in known}
    if options:
        given["batch_size"] = case.size
    times: list[tuple[int, float]] = []

    def watch(now: Progress) -> None:
        times.append((now.step, time.process_time()))

    start = time.process_time()
    purified, report = unbackdoor.purify(
        case.model, case.data.clean, task=case.task, method=name, seed=case.seed, watch=watch, **given
    )
    whole = time.process_time() - start
    pieces = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(times) if b[0] > a[0]]
    if name == "i-bau" and pieces:  # some steps search for a perturbation, so that none stands for all
        pieces = [whole / report.options["steps"]]
    return {
        "method": title,
        "side": "ours",
        "step_ms": round(1000 * min(pieces), 2) if pieces else None,
        "seconds": round(whole, 2),
        "options": dict(report.options),
        **case.measured(purified),
    }
