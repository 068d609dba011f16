"""From cells to rows: means and spreads over seeds, for each victim and method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from unbackdoor_bench.cells import NONE, Cell
from unbackdoor_bench.oracle import better
from unbackdoor_bench.store import DONE

__all__ = ["Row", "Spread", "summarise"]


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (0 for one value), smallest and largest."""

    mean: float
    deviation: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(mean(values), stdev(values) if len(values) > 1 else 0.0, min(values), max(values))

    def __str__(self) -> str:
        """``12.3``, or ``12.3 ± 0.4`` where there was more than one value that differed."""
        return f"{self.mean:.1f}" + (f" ± {self.deviation:.1f}" if self.low != self.high else "")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method on a victim.

    Attributes:
        victim: Name of the victim.
        label: Name of the row.
        metric: Name of the headline metric.
        before: Headline, ``asr`` and ``lcr`` of the victim, percent (other metrics of the task too); of a benign model
            neither ``asr`` nor ``lcr``.
        after: The same after the method, over the seeds; empty where every seed failed.
        seeds: That were measured.
        problems: What was refused or failed, or would have been refused outside a benchmark, in words.
        numbers: ``seconds``, ``steps``, ``peak_mib``, ``trainable``, over the seeds, where they are known.
        selection: By what the method chose its strength.
        oracle: Headline and ``asr`` of the oracle's choice; None where it was off or nothing was within its budget.
    """

    victim: str
    label: str
    metric: str
    before: Mapping[str, float]
    after: Mapping[str, Spread] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()
    numbers: Mapping[str, Spread] = field(default_factory=dict)
    selection: str = ""
    oracle: Mapping[str, Spread] | None = None

    def drop(self, name: str) -> float | None:
        """How far the mean of the figure ``name`` fell, in points."""
        return self.before[name] - self.after[name].mean if name in self.after and name in self.before else None


def summarise(results: Sequence[tuple[Cell, Mapping[str, Any]]]) -> list[Row]:
    """Rows in the order of the cells, the victim as it is first."""
    rows: list[Row] = []
    for victim in dict.fromkeys(cell.victim for cell, _ in results):
        mine = [(cell, content) for cell, content in results if cell.victim == victim]
        none = next((content for cell, content in mine if cell.method == NONE and content["status"] == DONE), None)
        before = {} if none is None else dict(none["figures"])
        metric = next(iter(before), "")
        if none is not None:
            rows.append(
                Row(victim=victim, label=NONE, metric=metric, before=before, after=_spreads([before]), seeds=(0,))
            )
        for label in dict.fromkeys(cell.label for cell, _ in mine if cell.method != NONE and not cell.trial):
            group = [(cell, content) for cell, content in mine if cell.label == label]
            tried = [content for cell, content in mine if cell.trial and cell.method == group[0][0].method]
            rows.append(_row(victim, label, metric, before, group, tried))
    return rows


def _row(
    victim: str,
    label: str,
    metric: str,
    before: Mapping[str, float],
    group: Sequence[tuple[Cell, Mapping[str, Any]]],
    tried: Sequence[Mapping[str, Any]],
) -> Row:
    done = [content for _, content in group if content["status"] == DONE]
    problems = [f"seed {cell.seed} {c['status']}: {c['error']}" for cell, c in group if c["status"] != DONE]
    problems += [f"seed {cell.seed} not fit for use: {why}" for cell, c in group for why in c.get("overruled", ())]
    if not done:
        return Row(victim=victim, label=label, metric=metric, before=before, problems=tuple(problems))
    columns = {
        "seconds": [c["seconds"] for c in done],
        "steps": [c["steps"] for c in done],
        "peak_mib": [c["peak_bytes"] / 2**20 for c in done if c.get("peak_bytes") is not None],
        "trainable": [c["report"]["trainable"] for c in done],
    }
    chosen = [found for c in done if (found := _choice(c, tried)) is not None]
    return Row(
        victim=victim,
        label=label,
        metric=metric or next(iter(done[0]["figures"])),
        before=before,
        after=_spreads([c["figures"] for c in done]),
        seeds=tuple(c["seed"] for c in done),
        problems=tuple(problems),
        numbers={name: Spread.of(values) for name, values in columns.items() if values},
        selection=done[0]["selection"],
        oracle=_spreads(chosen) if chosen else None,
    )


def _choice(content: Mapping[str, Any], tried: Sequence[Mapping[str, Any]]) -> Mapping[str, float] | None:
    """The oracle's figures for one seed: of the method's own run and of the variants with the same seed."""
    best: Mapping[str, float] | None = None
    for one in [content, *(c for c in tried if c["status"] == DONE and c["seed"] == content["seed"])]:
        found = (one.get("oracle") or {}).get("figures")
        if found is not None and better(found, best):
            best = found
    return best


def _spreads(figures: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    return {name: Spread.of([one[name] for one in figures]) for name in figures[0]}
