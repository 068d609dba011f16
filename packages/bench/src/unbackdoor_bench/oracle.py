"""Selection by attack success rate: what nobody can do without the trigger, kept to show what it would be worth.

It looks, with the trigger and on the test part, at the model at every report of a method's progress and at its end,
and keeps the figures with the lowest ASR among those within a loss of clean accuracy. A method knows nothing of it: the
watch that it is given returns nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from unbackdoor.defender.purifier import Progress

__all__ = ["Oracle", "better"]


class Oracle:
    """A watch that measures."""

    def __init__(self, measure: Callable[[nn.Module], Mapping[str, float]], before: float, drop: float) -> None:
        """``measure`` gives figures, the headline first; ``before`` is the victim's headline."""
        self.measure, self.before, self.drop = measure, before, drop
        self.seconds = 0.0
        self.looks = 0
        self.best: dict[str, Any] | None = None

    def __call__(self, now: Progress) -> None:
        """Look at the model of a report."""
        start = time.perf_counter()
        self.look(self.measure(now.model), f"{now.message} step {now.step} of {now.steps}".strip())
        self.seconds += time.perf_counter() - start

    def look(self, figures: Mapping[str, float], where: str) -> None:
        """Keep ``figures`` if they are within the budget and better than the best before."""
        self.looks += 1
        if self.before - next(iter(figures.values())) <= self.drop and better(
            figures, (self.best or {}).get("figures")
        ):
            self.best = {"figures": dict(figures), "where": where}


def better(figures: Mapping[str, float], than: Mapping[str, float] | None) -> bool:
    """Lower ASR; the better headline where it is the same."""
    if than is None:
        return True
    clean, other = next(iter(figures.values())), next(iter(than.values()))
    return (figures["asr"], -clean) < (than["asr"], -other)
