"""The scatter of clean score against attack success rate: the best place is at the top left."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from unbackdoor.files.writing import write_atomically
from unbackdoor_bench.summary import Row, Spread

if TYPE_CHECKING:
    from matplotlib.container import ErrorbarContainer

__all__ = ["draw_scatter"]

_COLUMNS = 3
_SMALLEST = 10.0
_MARKS = "osD^vPXp<>h8"


def draw_scatter(path: Path, rows: Sequence[Row]) -> None:
    """Draw one panel for each victim: a mark for each method, bars for the spread over seeds, a ring for the oracle.

    Args:
        path: A file of a kind that matplotlib writes, such as ``.png`` or ``.svg``.
        rows: Of `unbackdoor_bench.summarise`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    victims = [(name, list(group)) for name, group in groupby(rows, key=lambda row: row.victim)]
    labels = list(dict.fromkeys(row.label for row in rows if row.after))
    wide = min(_COLUMNS, len(victims))
    high = -(-len(victims) // wide)
    legend = 0.24 * -(-len(labels) // 4) + 0.3
    figure = Figure(figsize=(max(4.6 * wide, 6.4), 3.9 * high + legend), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(high, wide, squeeze=False).flatten()
    colours = _colours(len(labels))
    handles: dict[str, ErrorbarContainer] = {}
    for panel, (victim, mine) in zip(axes, victims, strict=False):
        for row in mine:
            if not row.after:
                continue
            number = labels.index(row.label)
            asr, clean = row.after.get("asr", Spread.of([0.0])), row.after[row.metric]
            given = row.label == "none"
            drawn = panel.errorbar(
                asr.mean,
                clean.mean,
                xerr=[[asr.mean - asr.low], [asr.high - asr.mean]],
                yerr=[[clean.mean - clean.low], [clean.high - clean.mean]],
                fmt="*" if given else _MARKS[number % len(_MARKS)],
                color=colours[number],
                markersize=11 if given else 7,
                capsize=2,
                linewidth=1,
                zorder=3,
            )
            handles.setdefault(row.label, drawn)
            if row.oracle:
                point = (row.oracle["asr"].mean, row.oracle[row.metric].mean)
                panel.plot(
                    *point, marker="o", markersize=12, markerfacecolor="none", markeredgecolor=colours[number], zorder=2
                )
        panel.set_title(victim, fontsize=10)
        benign = not any("asr" in row.after for row in mine)
        panel.set_xlabel("a benign model: no ASR" if benign else "ASR (%), lower is better")
        panel.set_ylabel(f"{mine[0].metric} (%), higher is better")
        panel.set_xlim(-4, 104)
        low, high_end = panel.get_ylim()
        spare = max(0.0, _SMALLEST - (high_end - low)) / 2  # else noise of half a point looks like a difference
        panel.set_ylim(low - spare, high_end + spare)
        panel.grid(alpha=0.3)
    for panel in axes[len(victims) :]:
        panel.set_visible(False)
    figure.legend(
        [drawn.lines[0] for drawn in handles.values()],
        list(handles),
        loc="outside lower center",
        ncols=min(4, len(handles)),
        fontsize=8,
    )
    if any(row.oracle for row in rows):
        figure.suptitle("rings: chosen by ASR (oracle), out of reach of a defender", fontsize=9)
    write_atomically(path, lambda draft: figure.savefig(draft, dpi=120), force=True)


def _colours(count: int) -> list[tuple[float, float, float, float]]:
    from matplotlib import colormaps

    table = colormaps["tab20"]
    return [table(number % 20) for number in range(count)]
