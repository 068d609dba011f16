"""Write the README's result tables from ``docs/results/*.json``; ``--check`` only compares.

python tools/tables.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_SHORT = {"accuracy": "ACC", "bleu": "BLEU", "map": "mAP"}
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def main() -> int:
    """Insert the tables, or tell whether they are as the files say."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    made = f"{head}{BEGIN}\n\n{tables()}\n{END}{tail}"
    if "--check" in sys.argv:
        return int(made != text)
    readme.write_text(made, encoding="utf-8")
    return 0


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
