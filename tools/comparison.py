"""The table of all methods in the documentation, made from what `unbackdoor compare` measured.

    unbackdoor compare VICTIM... --methods all --seeds 3 --threads 1 --out comparison
    python tools/comparison.py comparison VICTIM... --out docs/results/comparison_small.json --page docs/comparison.md
    python tools/comparison.py comparison VICTIM... --title "at the papers' scale" --out FILE.json --page FILE.md
    python tools/comparison.py --check

The first command makes one file a cell; the second gathers them, with the cards of the victims, into one JSON file and
makes the page from that file alone. The last says whether the committed page still is that of its JSON file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unbackdoor_bench import Cell, Row, summarise, to_markdown

ROOT = Path(__file__).resolve().parent.parent
RESULT, PAGE = ROOT / "docs" / "results" / "comparison_small.json", ROOT / "docs" / "comparison.md"
CONTROLS = ("none", "bn-only", "ft", "ft mixup=1.0")
LARGEST_DROP = 10.0
"""Points of clean accuracy that a method may cost where it is said to beat the control."""
CLEARLY = 5.0
"""Points of ASR below the control's from which on it counts as beaten."""


def main() -> int:
    """Gather, write and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, nargs="?", help="folder of `unbackdoor compare`")
    parser.add_argument("victims", type=Path, nargs="*", help="folders that were compared, in the order of the page")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--title", default="small victims", help="what kind of victims they are")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        content = json.loads(arguments.out.read_text(encoding="utf-8"))
        same = arguments.page.read_text(encoding="utf-8") == page(content, arguments.out.name)
        sys.stderr.write("" if same else f"{arguments.page} is not what {arguments.out} says; make it again.\n")
        return 0 if same else 1
    if arguments.store is None or not arguments.victims:
        parser.error("give the folder of the comparison and those of its victims")
    content = {"title": arguments.title, **gathered(arguments.store, arguments.victims)}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    arguments.page.write_text(page(content, arguments.out.name), encoding="utf-8")
    return 0


def gathered(store: Path, victims: Sequence[Path]) -> dict[str, Any]:
    """What the cells and the victims' cards say, without logs and notices."""
    cards = {folder.name: json.loads((folder / "card.json").read_text(encoding="utf-8")) for folder in victims}
    for card in cards.values():
        card["data_options"].pop("path", None)  # a folder of this machine
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((store / "cells").glob("*.json"))]
    kept = [short(cell) for cell in cells if cell["victim"] in cards]
    kept.sort(key=lambda cell: (list(cards).index(cell["victim"]), rank(cell), cell["seed"]))
    seeds = sorted({cell["seed"] for cell in kept if cell["method"] != "none"})
    command = f"unbackdoor compare {' '.join(f'victims/{name}' for name in cards)} --methods all --seeds {len(seeds)}"
    versions = next(cell["versions"] for cell in cells if cell["status"] == "done")
    return {"command": f"{command} --threads 1", "victims": cards, "cells": kept, "versions": versions}


def short(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a cell and what they depend on."""
    names = ("victim", "label", "method", "seed", "status", "error", "figures", "seconds", "steps", "peak_bytes")
    found = {name: cell[name] for name in (*names, "selection", "clean") if name in cell}
    found["depends_on"] = cell["depends_on"]
    if "report" in cell:
        found["report"] = {"trainable": cell["report"]["trainable"], "total": cell["report"]["total"]}
        found["notices"] = cell["report"]["notices"]
    return found


def rank(cell: Mapping[str, Any]) -> tuple[int, str]:
    """Where a row stands: the victim as it is, the controls, then by name."""
    label = cell["label"]
    return (CONTROLS.index(label) if label in CONTROLS else len(CONTROLS), label)


def rows_of(content: Mapping[str, Any]) -> list[Row]:
    """Means and spreads over the seeds."""
    pairs = []
    for cell in content["cells"]:
        known = cell["depends_on"]
        made = Cell(
            victim=cell["victim"],
            victim_hash=known["victim_hash"],
            method=cell["method"],
            label=cell["label"],
            options=known["options"],
            seed=cell["seed"],
            clean=known["clean"],
        )
        pairs.append((made, cell))
    return summarise(pairs)


def page(content: Mapping[str, Any], file: str) -> str:
    """The page, made from the JSON alone, which is called ``file``."""
    rows = rows_of(content)
    seeds = sorted({cell["seed"] for cell in content["cells"] if cell["method"] != "none"})
    numbers = ", ".join(map(str, seeds))
    device = content["versions"]["device"]
    machine = "one thread of a CPU" if device == "cpu" else device
    made = (
        f"Made by `tools/comparison.py` from `docs/results/{file}`, whose cells `{content['command']}` measured "
        f"(`--data-path` beside it says where data lie): defaults of every method on one victim of each kind, seeds "
        f"{numbers} of the method as far as the time went, torch {content['versions']['torch']}, {machine}. Other jobs "
        "ran beside it, so seconds are rough. No default of a method was chosen on these victims."
    )
    beaten = (
        "`bn-only` re-estimates BatchNorm and changes no weight. A method beats it on a victim where its mean ASR lies "
        f"at least {CLEARLY:g} points below and its mean clean accuracy falls by {LARGEST_DROP:g} points at most."
    )
    read = (
        "All methods get the same clean samples and the same augmentation. Figures are of earlier defaults: `ft`, "
        "`nft`, `f-fip` and `fip` let the tuned model read disturbed inputs besides (rows with `disturb=False` are "
        "without), and `nft` and `f-fip` imitated the given model in rounds of attenuation. None of that exists now."
    )
    lines = [f"# All methods: {content['title']}", "", made, ""]
    lines += [f"- {victim(name, card)}" for name, card in content["victims"].items()]
    lines += ["", read]
    lines += ["", "## Does it beat the control?", "", beaten, "", *verdicts(rows)]
    lines += ["", "## Figures", "", to_markdown(rows)]
    return "\n".join(lines)


def victim(name: str, card: Mapping[str, Any]) -> str:
    """One line on a victim."""
    options = {k: v for part in ("model_options", "data_options", "train_options") for k, v in card[part].items()}
    options = {key: value for key, value in options.items() if key not in ("num_classes", "path")}
    words = ", ".join(f"{key} {value}" for key, value in options.items())
    trigger = ", ".join(f"{k} {v}" for k, v in card["attack_options"].items() if k not in ("name", "num_classes"))
    return f"**{name}**: {card['attack']} ({trigger}) on {card['data']}, {card['model']} ({words}), seed {card['seed']}"


def verdicts(rows: Sequence[Row]) -> list[str]:
    """A table of methods against victims: mean ASR and loss, bold where the control is beaten."""
    victims = list(dict.fromkeys(row.victim for row in rows))
    found = {(row.victim, row.label): row for row in rows}
    labels = [label for label in dict.fromkeys(row.label for row in rows) if label != "none"]
    lines = [
        "ASR / points of clean accuracy lost (number of seeds); bold where it beats the control:",
        "",
        f"| method | {' | '.join(victims)} | beats `bn-only` on |",
        "|---" * (len(victims) + 2) + "|",
    ]
    for label in labels:
        cells, won = [], 0
        for name in victims:
            row, control = found.get((name, label)), found[name, "bn-only"]
            text, better = compared(row, control)
            won += better
            cells.append(f"**{text}**" if better else text)
        lines.append(f"| {label} | {' | '.join(cells)} | {won} of {len(victims)} |")
    return lines


def compared(row: Row | None, control: Row) -> tuple[str, bool]:
    """``ASR / loss`` and whether the row beats the control."""
    if row is None or not row.after:
        return ("not run" if row is None else "refused"), False
    lost = row.drop(row.metric)
    assert lost is not None
    asr = row.after["asr"].mean
    text = f"{asr:.1f} / {lost + 0.0:.1f} ({len(row.seeds)})".replace("-0.0", "0.0")
    return text, asr <= control.after["asr"].mean - CLEARLY and lost <= LARGEST_DROP


if __name__ == "__main__":
    sys.exit(main())
