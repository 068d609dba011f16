"""The tables that commands print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from unbackdoor.attacker.attack import Attack
    from unbackdoor.task import Task

__all__ = ["ceiling", "comparison", "demonstration", "excerpt", "figures", "measured_by", "names"]

_LONG = {
    "asr": "attack success rate (ASR)",
    "lcr": "label correction rate (LCR)",
    "perplexity": "perplexity (not a percentage)",
}
_LOWER_IS_BETTER = ("asr",)
_LEGEND = (
    "Percent, on test data that no method saw.\n"
    "ASR: triggered samples answered as the attacker wants; lower is better.\n"
    "LCR: triggered samples answered correctly; higher is better."
)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _framed(title: str, table: Table, caption: str) -> Group:
    """A table between its title and its caption, which may be wider than it."""
    return Group(Text(title, style="bold"), table, Text(caption, style="dim"))


def measured_by(task: Task) -> str:
    """A line of a caption that says how the task's metrics were computed; empty where it says nothing."""
    notation = task.measured_by()
    return f"\n{notation}." if notation else ""


def ceiling(attack: Attack | None, figures: Mapping[str, float]) -> str:
    """A line of a caption that says what success rate an attack to all classes can reach; empty for any other."""
    if attack is None or not attack.all_to_all:
        return ""
    metric, clean = next(iter(figures.items()))
    return f"\nAll to all: success is the class after the true one, so {metric} {clean:.1f} is the ceiling of ASR."


def _change(name: str, before: float, after: float, *, proven: bool = True) -> Text:
    """The change, green where it is good and on samples that nothing was tuned or chosen on."""
    change = after - before
    if abs(change) < 0.05:
        return Text("0.0")
    good = (change < 0) == (name in _LOWER_IS_BETTER)
    if good and not proven:
        return Text(f"{change:+.1f}")
    colour = "green" if good else "red" if abs(change) >= 1 else "yellow"
    return Text(f"{change:+.1f}", style=colour)


def comparison(
    title: str, before: Mapping[str, float], after: Mapping[str, float], caption: str, *, optimistic: str = ""
) -> Group:
    """Figures before and after a purification, in percent.

    Args:
        title: Over the table.
        before: Figures by name.
        after: The same afterwards.
        caption: Under the table.
        optimistic: Why the figures prove nothing yet, for the heading; a gain is then not shown as one.
    """
    said = f" ({optimistic})" if optimistic else ""
    table = _table("percent", "before", f"after{said}", "change")
    for name, old in before.items():
        new = after[name]
        if math.isnan(old) or math.isnan(new):
            table.add_row(_LONG.get(name, name), "not measured", "not measured", "")
            continue
        table.add_row(_LONG.get(name, name), f"{old:.1f}", f"{new:.1f}", _change(name, old, new, proven=not said))
    return _framed(title, table, caption)


def figures(title: str, values: Mapping[str, float], caption: str, *, optimistic: str = "") -> Group:
    """Figures of one model, in percent; ``optimistic`` says in the heading why they prove nothing yet."""
    table = _table("figure", f"percent ({optimistic})" if optimistic else "percent")
    for name, value in values.items():
        table.add_row(_LONG.get(name, name), f"{value:.1f}")
    return _framed(title, table, caption)


def demonstration(title: str, metric: str, runs: Sequence[Sequence[Mapping[str, Any]]], notation: str = "") -> Group:
    """One row a method: mean over the runs, with the standard deviation where there are several."""
    table = _table("method", metric, "ASR", "LCR", f"Δ {metric}", "Δ ASR", "seconds")
    victim = [run[0] for run in runs]
    for number, first in enumerate(runs[0]):
        row = [run[number] for run in runs]
        clean, asr, lcr, seconds = ([one[key] for one in row] for key in ("clean", "asr", "lcr", "seconds"))
        shown = [_spread(clean), _spread(asr), _spread(lcr)]
        if number == 0:
            table.add_row(Text("backdoored model", style="bold"), *shown, "", "", "", end_section=True)
            continue
        change = _change("clean", _mean([one["clean"] for one in victim]), _mean(clean))
        drop = _change("asr", _mean([one["asr"] for one in victim]), _mean(asr))
        table.add_row(str(first["method"]), *shown, change, drop, f"{_mean(seconds):.1f}")
    return _framed(title, table, _LEGEND + notation)


def excerpt(rows: Sequence[Mapping[str, str]]) -> list[Table]:
    """Samples in words, a row a line; a line stands between groups that begin with the same word as the first."""
    if not rows:
        return []
    table = Table(box=box.SIMPLE_HEAD)
    for column in rows[0]:
        table.add_column(column)
    first = next(iter(rows[0].values()))
    for number, row in enumerate(rows):
        last = number + 1 == len(rows) or next(iter(rows[number + 1].values())) == first
        table.add_row(*row.values(), end_section=last)
    return [table]


def names(title: str, rows: Mapping[str, str]) -> Table:
    """Names with a line of explanation each."""
    table = Table(title=title, box=None, show_header=False, title_justify="left", title_style="bold", padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, line in rows.items():
        table.add_row(name, line)
    return table


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(values: Sequence[float]) -> str:
    mean = _mean(values)
    if len(values) == 1:
        return f"{mean:.1f}"
    deviation = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return f"{mean:.1f} ± {deviation:.1f}"
