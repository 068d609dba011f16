"""Rows as Markdown, CSV and HTML; `columns` and `values` also make the table of the terminal."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from itertools import groupby

from unbackdoor_bench.summary import Row

__all__ = ["columns", "legend", "to_csv", "to_html", "to_markdown", "values"]

_SHORT = {"accuracy": "ACC", "bleu": "BLEU", "mean_average_precision": "mAP"}
_EXPLAINED = {
    "drop": "drop: what of the figure before is gone, in points.",
    "ASR": "ASR: triggered samples answered as the attacker wants; worst: the seed with the highest.",
    "LCR": "LCR: triggered samples answered rightly.",
    "MiB": "MiB: peak memory, on a CPU the growth of the process.",
    "selection": "selection: what decided how strongly the method purified.",
    "oracle": (
        "oracle: the state of a run, or the variant, with the lowest ASR on the test part within the oracle's budget "
        "of clean accuracy; no defender can choose so, and no method saw it."
    ),
}


def legend(names: Sequence[str]) -> str:
    """What the headings ``names`` mean, those alone."""
    words = {word for name in names for word in name.split()}
    told = [text for word, text in _EXPLAINED.items() if word in words]
    return " ".join(["Percent, on test data that no method saw; mean ± standard deviation over seeds.", *told])


def columns(rows: Sequence[Row]) -> list[str]:
    """Headings for ``rows``; the oracle's columns stand only where it was on."""
    metrics = list(dict.fromkeys(_SHORT.get(row.metric, row.metric) for row in rows if row.metric))
    name = metrics[0] if len(metrics) == 1 else "clean"
    found = ["method", name, f"{name} drop", "ASR", "worst", "ASR drop", "LCR", "LCR gain"]
    found += ["seconds", "steps", "MiB", "trainable", "selection"]
    return found + ([f"oracle {name}", "oracle ASR"] if any(row.oracle for row in rows) else [])


def values(row: Row, *, oracle: bool) -> list[str]:
    """The cells of ``row`` as text, in the order of `columns`."""
    if not row.after:
        return [row.label, "; ".join(row.problems), *[""] * (13 if oracle else 11)]
    after, numbers = row.after, row.numbers
    as_given = row.label == "none"
    found = [row.label, str(after[row.metric]), "" if as_given else _points(row.drop(row.metric))]
    if "asr" in after:
        found += [str(after["asr"]), f"{after['asr'].high:.1f}", "" if as_given else _points(row.drop("asr"))]
        gain = row.drop("lcr")
        found += [str(after["lcr"]), "" if as_given or gain is None else _points(-gain)]
    else:
        found += [""] * 5  # a benign model has no trigger
    found += [f"{numbers[name].mean:.1f}" if name in numbers else "" for name in ("seconds",)]
    found += [f"{numbers[name].mean:,.0f}" if name in numbers else "" for name in ("steps", "peak_mib", "trainable")]
    found.append(row.selection + (f" ({'; '.join(row.problems)})" if row.problems else ""))
    if oracle:
        found += [str(row.oracle[name]) if row.oracle else "" for name in (row.metric, "asr")]
    return found


def to_markdown(rows: Sequence[Row]) -> str:
    """A heading and a table for each victim."""
    parts = []
    names = columns(rows)
    for victim, group in groupby(rows, key=lambda row: row.victim):
        lines = [f"**{victim}**", "", _line(names), _line(["---"] * len(names))]
        lines += [_line([_barred(value) for value in _texts(row, names)]) for row in group]
        parts.append("\n".join(lines) + "\n")
    return "\n".join([*parts, legend(names), ""])


def to_csv(rows: Sequence[Row]) -> str:
    """Plain numbers, one line a row: means, deviations and extremes of every figure."""
    figures = list(dict.fromkeys(name for row in rows for name in row.after))
    numbers = ["seconds", "steps", "peak_mib", "trainable"]
    head = ["victim", "method", "seeds", *(f"{name}_before" for name in figures)]
    head += [f"{name}_{part}" for name in figures for part in ("mean", "sd", "low", "high")]
    head += [*numbers, "selection", *(f"oracle_{name}" for name in figures), "problems"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        line: list[object] = [row.victim, row.label, " ".join(map(str, row.seeds))]
        line += [_number(row.before.get(name)) for name in figures]
        for name in figures:
            spread = row.after.get(name)
            parts = (None,) * 4 if spread is None else (spread.mean, spread.deviation, spread.low, spread.high)
            line += [_number(part) for part in parts]
        line += [_number(row.numbers[name].mean) if name in row.numbers else "" for name in numbers]
        line.append(row.selection)
        oracle = row.oracle or {}
        line += [_number(oracle[name].mean) if name in oracle else "" for name in figures]
        writer.writerow([*line, "; ".join(row.problems)])
    return text.getvalue()


def to_html(rows: Sequence[Row], title: str, picture: str | None = None, facts: Mapping[str, str] | None = None) -> str:
    """One page that needs nothing else but its picture.

    Args:
        rows: Of `summarise`.
        title: Of the page.
        picture: Address of the scatter, relative to the page.
        facts: What stands under the title, such as the command and the versions.
    """
    names = columns(rows)
    body = [f"<h1>{html.escape(title)}</h1>"]
    if facts:
        body.append("<dl>" + "".join(f"<dt>{_safe(key)}</dt><dd>{_safe(text)}</dd>" for key, text in facts.items()))
        body.append("</dl>")
    if picture:
        body.append(f'<img src="{html.escape(picture, quote=True)}" alt="Clean score against attack success rate">')
    for victim, group in groupby(rows, key=lambda row: row.victim):
        cells = "".join(f"<th>{_safe(name)}</th>" for name in names)
        body.append(f"<h2>{_safe(victim)}</h2>\n<div><table><thead><tr>{cells}</tr></thead><tbody>")
        for row in group:
            cells = "".join(f"<td>{_safe(value)}</td>" for value in _texts(row, names))
            body.append(f"<tr>{cells}</tr>")
        body.append("</tbody></table></div>")
    body.append(f"<p>{_safe(legend(names))}</p>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_safe(title)}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head><body>\n' + "\n".join(
        [*body, "</body></html>", ""]
    )


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem}"
    "div{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{padding:.25rem .6rem;text-align:right;white-space:nowrap;border-bottom:1px solid #ddd}"
    "th:first-child,td:first-child{text-align:left}tbody tr:first-child{font-weight:600}img{max-width:100%}"
    "dt{float:left;clear:left;width:8rem;color:#666}dd{margin-left:9rem}p{max-width:60rem;color:#444}"
)


def _texts(row: Row, names: Sequence[str]) -> list[str]:
    return values(row, oracle=names[-1] == "oracle ASR")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _barred(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _points(value: float | None) -> str:
    return "" if value is None else f"{value + 0.0:.1f}".replace("-0.0", "0.0")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _safe(text: str) -> str:
    return html.escape(text, quote=False)
