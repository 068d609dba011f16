"""Write result tables from ``docs/results/*.json`` into READMEs; ``--check`` only compares.

python tools/tables.py

The root's README gets the means of all files. In the READMEs of packages a comment ``results: NAME ...`` names files
whose figures follow it, one for each seed, up to a comment ``results:end``.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SHORT = {"accuracy": "ACC", "bleu": "BLEU", "map": "mAP"}
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


NAMED = re.compile(r"(<!-- results: ([\w. -]+?) -->\n)(.*?)(<!-- results:end -->)", re.DOTALL)


def main() -> int:
    """Insert the tables, or tell whether they are as the files say."""
    differ = False
    for readme in (ROOT / "README.md", *sorted(ROOT.glob("packages/*/README.md"))):
        text = readme.read_text(encoding="utf-8")
        made = NAMED.sub(lambda found: f"{found[1]}\n{by_seed(found[2].split())}\n{found[4]}", text)
        if BEGIN in text:
            head, _, rest = made.partition(BEGIN)
            _, _, tail = rest.partition(END)
            made = f"{head}{BEGIN}\n\n{tables()}\n{END}{tail}"
        differ |= made != text
        if "--check" not in sys.argv:
            readme.write_text(made, encoding="utf-8")
    return int("--check" in sys.argv and differ)


def by_seed(names: list[str]) -> str:
    """One Markdown table of several files, the figures of all seeds in a cell, and their mean."""
    lines = ["| file | seeds | method | clean | points lost | ASR |", "|---|---|---|---|---|---|"]
    for name in names:
        result = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        metric = next(iter(result["mean"]["none"]))
        for method in result["mean"]:
            rows = [row for row in result["rows"] if row["method"] == method]
            seeds = ", ".join(str(row["seed"]) for row in rows)
            cells = (_listed([row[key] for row in rows if key in row]) for key in (metric, "drop", "asr"))
            lines.append(f"| `{name}` | {seeds} | `{method}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _listed(values: list[float]) -> str:
    """``1.0, 2.0 (1.5)``."""
    if len(values) < 2:
        return ", ".join(f"{value:.1f}" for value in values)
    return ", ".join(f"{value:.1f}" for value in values) + f" (**{sum(values) / len(values):.1f}**)"


def tables() -> str:
    """One Markdown table for each file."""
    parts = []
    for path in sorted((ROOT / "docs" / "results").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "mean" not in result:
            continue
        seeds = sorted({row["seed"] for row in result["rows"]})
        card = result["card"]
        metric = next(iter(result["mean"]["none"]))
        title = f"**{path.stem}** ({card['model']}, {card['clean_samples']} clean and {card['test']} test samples"
        lines = [
            f"{title}, mean over seeds {', '.join(map(str, seeds))}): `{result['command']}`",
            "",
            f"| method | {_SHORT.get(metric, metric)} | drop | ASR | worst ASR | LCR | seconds |",
            "|---|---|---|---|---|---|---|",
        ]
        for method, row in result["mean"].items():
            drop, seconds = (f"{row[key]:.1f}" if key in row else "" for key in ("drop", "seconds"))
            lines.append(
                f"| {method} | {row[metric]:.1f} | {drop} | {row['asr']:.1f} | {row['worst_asr']:.1f} "
                f"| {row['lcr']:.1f} | {seconds} |"
            )
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
