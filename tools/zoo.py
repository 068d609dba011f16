"""Trains the victims that a TOML file lists into a folder outside the repository, and writes their table.

    python tools/zoo.py tools/zoo.toml --cache DIR --data-path data [--only NAME ...] [--out docs/results/zoo.json]

It can be stopped and started again: what is done is kept, by the hash of its recipe. A victim under the floors of the
file is refused and trained again with the next seed; where no seed passes, the table names the failure and its figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unbackdoor.attack import HealthFloor
from unbackdoor.errors import UnbackdoorError
from unbackdoor.evaluate import attack_metrics, evaluate
from unbackdoor.kit import Splits, TaskKit
from unbackdoor.registry import kit as kit_of
from unbackdoor.report import versions
from unbackdoor.scene import Plan
from unbackdoor.victim import Victim

BENIGN = "none"


@dataclass(frozen=True)
class Recipe:
    """One victim of the file, with the file's defaults filled in."""

    name: str
    values: Mapping[str, Any]

    @property
    def plan(self) -> Plan:
        """What to train."""
        names = ("data_options", "model_options", "attack_options", "train_options")
        options = {name: self.values.get(name, {}) for name in names}
        attack = None if self.values["attack"] == BENIGN else self.values["attack"]
        return Plan(self.values["data"], self.values["model"], attack, **options)

    @property
    def identity(self) -> str:
        """Of everything that the victim depends on, but for where the data lie and which floors it must meet."""
        kept = {key: value for key, value in self.values.items() if key not in ("floor", "seeds")}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def recipes(path: Path) -> list[Recipe]:
    """The victims of a TOML file: tables under ``victim`` over those of ``defaults``, one level deep."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    base = content.get("defaults", {})
    found = []
    for name, own in content.get("victim", {}).items():
        values = {**base, **own}
        for key, value in base.items():
            if isinstance(value, dict) and isinstance(own.get(key), dict):
                values[key] = {**value, **own[key]}
        missing = {"data", "model", "attack", "floor", "seeds"} - set(values)
        if missing:
            raise SystemExit(f"{path}: victim {name!r} lacks {', '.join(sorted(missing))}")
        found.append(Recipe(name, values))
    return found


class Zoo:
    """The folder of victims, and the data sets that were read for them."""

    def __init__(self, cache: Path, data_path: str | None, device: torch.device) -> None:
        """Nothing is read yet."""
        self.cache, self.data_path, self.device = cache, data_path, device
        self._data: dict[str, Splits] = {}

    def data(self, kit: TaskKit, recipe: Recipe, seed: int) -> Splits:
        """The recipe's data set, read once for each seed and option."""
        options = dict(recipe.values.get("data_options", {}))
        if self.data_path is not None and recipe.values["data"] != "digits":
            options["path"] = self.data_path
        key = json.dumps([recipe.values["data"], options, seed], sort_keys=True)
        if key not in self._data:
            self._data = {key: replace(recipe.plan, data_options=options).read(kit, seed=seed)}  # one at a time
        return self._data[key]

    def entry(self, recipe: Recipe) -> dict[str, Any]:
        """The row of ``recipe``: from its folder where it is done, else after training with one seed after another."""
        folder = self.cache / f"{recipe.name}-{recipe.identity}"
        done = folder / "row.json"
        if done.is_file():
            row: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
            row |= {"healthy": _healthy(row, recipe.values["floor"])}
            if row["healthy"] or len(row["tries"]) >= len(recipe.values["seeds"]):
                say(f"{recipe.name}: done before, {_short(row)}")
                return row
        tries: list[dict[str, Any]] = []
        for seed in recipe.values["seeds"]:
            row = self._train(recipe, seed, folder)
            tries.append({key: row[key] for key in ("seed", "accuracy", "asr", "error") if key in row})
            row["tries"] = list(tries)
            if row["healthy"]:
                break
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / "row.json.part"
        draft.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        draft.replace(done)
        say(f"{recipe.name}: {_short(row)}")
        return row

    def _train(self, recipe: Recipe, seed: int, folder: Path) -> dict[str, Any]:
        values = recipe.values
        kit = kit_of(values.get("task", "image"))
        data = self.data(kit, recipe, seed)
        plan = recipe.plan
        row: dict[str, Any] = {"name": recipe.name, "attack": values["attack"], "seed": seed, "healthy": False}
        start = time.perf_counter()
        try:
            attack = plan.make_attack(kit, data)
            shown = progress(f"{recipe.name} seed {seed}")
            model, task = plan.train(kit, data, attack, seed=seed, device=self.device, progress=shown)
            figures = evaluate(model, data.test, task, attack)
        except UnbackdoorError as error:
            return row | {"error": f"{type(error).__name__}: {error}"}
        row |= {name: round(value, 2) for name, value in figures.items()}
        row["seconds"] = round(time.perf_counter() - start, 1)
        if attack is None:
            row["healthy"] = _healthy(row, values["floor"])
            return row
        row["clean_label"] = attack.clean_label
        if attack.all_to_all:
            row["asr_ceiling"] = row["accuracy"]
        for part in getattr(attack, "members", ()):
            row.setdefault("parts", {})[part.name] = round(attack_metrics(model, data.test, task, part)["asr"], 2)
        card = plan.card(values.get("task", "image"), data, attack, figures, seed=seed, device=self.device)
        row["healthy"] = _healthy(row, values["floor"])
        if row["healthy"]:
            floor = HealthFloor(values["floor"]["acc"], values["floor"]["asr"])
            Victim(model.cpu(), attack, card).save(folder, force=True, floor=floor)
        return row


def _healthy(row: Mapping[str, Any], floor: Mapping[str, float]) -> bool:
    if "accuracy" not in row or row["accuracy"] < floor["acc"]:
        return False
    wanted = floor.get("asr", 0.0)
    if "asr_ceiling" in row:  # all-to-all: the model must know y to answer y + 1
        wanted = min(wanted, 0.9 * row["asr_ceiling"])
    return bool(row.get("asr", 100.0) >= wanted)


def progress(title: str) -> Callable[[int, int, Mapping[str, float]], None]:
    """A line on the error stream about every ten seconds, with the time that is left."""
    start = last = time.monotonic()

    def told(step: int, steps: int, scalars: Mapping[str, float]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < 10 and step < steps:
            return
        last = now
        left = (now - start) / step * (steps - step)
        say(f"  {title}: step {step}/{steps}, loss {scalars.get('loss', float('nan')):.3f}, {left:.0f} s left")

    return told


def say(text: str) -> None:
    """One line on the error stream."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _short(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return f"FAILED, {row['error']}"
    words = f"ACC {row['accuracy']:.1f}" + (f", ASR {row['asr']:.1f}, LCR {row['lcr']:.1f}" if "asr" in row else "")
    return words + ("" if row["healthy"] else ", UNDER ITS FLOOR")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table; a victim under its floor is named a failure."""
    lines = [
        "| victim | attack | ACC | ASR | LCR | seed | tries | seconds | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['name']} | {row['attack']} | | | | {row['seed']} | {len(row['tries'])} | | failed |")
            continue
        note = "healthy" if row["healthy"] else "**failed: under its floor**"
        if "asr_ceiling" in row:
            note += f", ceiling {row['asr_ceiling']:.1f}"
        if "parts" in row:
            note += ", " + ", ".join(f"{name} {value:.1f}" for name, value in row["parts"].items())
        figures = [f"{row[key]:.1f}" if key in row else "" for key in ("accuracy", "asr", "lcr")]
        end = [str(row["seed"]), str(len(row["tries"])), f"{row['seconds']:.0f}", note]
        lines.append("| " + " | ".join([row["name"], row["attack"], *figures, *end]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Read the file, train what is missing, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="TOML file of victims")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of the victims")
    parser.add_argument("--data-path", help="folder of the data sets")
    parser.add_argument("--only", nargs="+", help="names of victims; default: all")
    parser.add_argument("--out", type=Path, help="JSON file for the rows; the table goes beside it as .md")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    chosen = [one for one in recipes(arguments.file) if not arguments.only or one.name in arguments.only]
    if not chosen:
        raise SystemExit(f"{arguments.file} has no victim {', '.join(arguments.only or ())}")
    device = torch.device(arguments.device)
    zoo = Zoo(arguments.cache.expanduser(), arguments.data_path, device)
    rows = []
    for place, recipe in enumerate(chosen, start=1):
        say(f"[{place}/{len(chosen)}] {recipe.name}")
        rows.append(zoo.entry(recipe))
        if arguments.out:
            write(arguments.out, arguments.file, rows, device, arguments.only or [])
    sys.stdout.write(table(rows) + "\n")


def write(out: Path, file: Path, rows: list[dict[str, Any]], device: torch.device, only: list[str]) -> None:
    """The rows with the recipes that made them as JSON, and their table."""
    content = {
        "command": f"python tools/zoo.py {file.as_posix()} --data-path data --out {out.as_posix()}"
        + (" --only " + " ".join(only) if only else ""),
        "recipes": tomllib.loads(file.read_text(encoding="utf-8")),
        "threads": torch.get_num_threads(),
        "rows": rows,
        "versions": versions(device),
    }
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(table(rows) + "\n", encoding="utf-8")


def default_cache() -> Path:
    """Where this machine keeps such things."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "unbackdoor" / "zoo"


if __name__ == "__main__":
    main()
