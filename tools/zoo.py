"""Trains the victims that a TOML file lists into a folder outside the repository, and writes their table.

    python tools/zoo.py tools/zoo.toml --cache DIR --data-path data [--only NAME ...] [--out docs/results/zoo.json]
        [--fixtures FOLDER]

It can be stopped and started again: what is done is kept, under a hash of its recipe and of what today's code does with
it (see `behaviour`). A victim under the floors of the file is refused and trained again with the next seed; where no
seed passes, the table names the failure and its figures. Floors: ``acc`` and ``asr`` in percent, and ``drop``, how far
the accuracy may lie under that of the file's clean model of the same recipe. All to all, a model must know ``y`` to
answer ``y + 1``: there the accuracy is the ceiling of the success rate, and nine tenths of it the highest floor.

``--fixtures`` writes the healthy victims in half precision, for tests: their figures are measured again as they are
stored.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from behaviour import behaviour
from torch import nn

from unbackdoor.attacker.attack import Attack, HealthFloor
from unbackdoor.attacker.kit import Splits, TaskKit
from unbackdoor.attacker.plan import Plan
from unbackdoor.attacker.victim import Victim
from unbackdoor.attacker.victim_card import CARD, MODEL, card_text, read_card, signed
from unbackdoor.data import CleanSet
from unbackdoor.errors import UnbackdoorError
from unbackdoor.evaluate import attack_metrics, evaluate
from unbackdoor.files.writing import write_text
from unbackdoor.measure import evaluating
from unbackdoor.registry import kit as kit_of
from unbackdoor.report import versions
from unbackdoor.task import Batch, Task

BENIGN = "none"
FIXTURE_BYTES = 2**20
"""Largest file of a fixture."""


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

    def identity(self, does: str) -> str:
        """Of everything that the victim depends on, but for where the data lie and which floors it must meet.

        Args:
            does: What today's code makes of the recipe, see `behaviour`.
        """
        kept = {key: value for key, value in self.values.items() if key not in ("floor", "seeds")}
        return hashlib.sha256(json.dumps([kept, does], sort_keys=True).encode()).hexdigest()[:12]

    def is_clean_form_of(self, other: Recipe) -> bool:
        """Whether this is the clean model that ``other`` is compared with."""
        alike = ("task", "data", "data_options", "model", "model_options", "train_options")
        same = all(self.values.get(key) == other.values.get(key) for key in alike)
        return same and self.values["attack"] == BENIGN


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

    def __init__(self, cache: Path, data_path: str | None, device: torch.device, known: Sequence[Recipe] = ()) -> None:
        """Nothing is read yet; ``known`` are the recipes of the file, among them the clean models."""
        self.cache, self.data_path, self.device, self.known = cache, data_path, device, known
        self._data: dict[str, Splits] = {}
        self._folders: dict[str, Path] = {}
        self._rows: dict[str, dict[str, Any]] = {}

    def data(self, kit: TaskKit, recipe: Recipe, seed: int) -> Splits:
        """The recipe's data set, read once for each seed and option."""
        options = dict(recipe.values.get("data_options", {}))
        if self.data_path is not None and recipe.values["data"] != "digits":
            options["path"] = self.data_path
        key = json.dumps([recipe.values["data"], options, seed], sort_keys=True)
        if key not in self._data:
            self._data = {key: replace(recipe.plan, data_options=options).read(kit, seed=seed)}  # one at a time
        return self._data[key]

    def folder(self, recipe: Recipe) -> Path:
        """Where the victim of ``recipe`` lies, or will lie."""
        if recipe.name not in self._folders:
            kit = kit_of(recipe.values.get("task", "image"))
            does = behaviour(kit, self.data(kit, recipe, recipe.values["seeds"][0]), recipe.values, BENIGN)
            self._folders[recipe.name] = self.cache / f"{recipe.name}-{recipe.identity(does)}"
        return self._folders[recipe.name]

    def entry(self, recipe: Recipe) -> dict[str, Any]:
        """The row of ``recipe``: from its folder where it is done, else after training with one seed after another."""
        if recipe.name not in self._rows:
            self._rows[recipe.name] = self._entry(recipe)
        return self._rows[recipe.name]

    def _entry(self, recipe: Recipe) -> dict[str, Any]:
        clean = self._clean(recipe)
        folder = self.folder(recipe)
        done = folder / "row.json"
        if done.is_file():
            row: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
            _judge(row, recipe.values["floor"], clean)
            if row["healthy"] or len(row["tries"]) >= len(recipe.values["seeds"]):
                say(f"{recipe.name}: done before, {_short(row)}")
                return row
        tries: list[dict[str, Any]] = []
        for seed in recipe.values["seeds"]:
            row = self._train(recipe, seed, folder, clean)
            tries.append({key: row[key] for key in ("seed", "accuracy", "asr", "error") if key in row})
            row["tries"] = list(tries)
            if row["healthy"]:
                break
        write_text(done, json.dumps(row, indent=1) + "\n", force=True)
        say(f"{recipe.name}: {_short(row)}")
        return row

    def _clean(self, recipe: Recipe) -> float | None:
        """Accuracy of the clean model of the same recipe, which is trained first."""
        if recipe.values["attack"] == BENIGN or "drop" not in recipe.values["floor"]:
            return None
        for one in self.known:
            if one.is_clean_form_of(recipe):
                return float(self.entry(one)["accuracy"])
        raise SystemExit(f"victim {recipe.name!r} has a floor for its drop, but the file has no clean model like it")

    def _train(self, recipe: Recipe, seed: int, folder: Path, clean: float | None) -> dict[str, Any]:
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
            _judge(row, values["floor"], None)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(model.cpu().state_dict(), folder / "clean.pt")
            return row
        row["clean_label"] = attack.clean_label
        if attack.all_to_all:
            row["asr_ceiling"] = row["accuracy"]
        for part in getattr(attack, "members", ()):
            row.setdefault("parts", {})[part.name] = round(attack_metrics(model, data.test, task, part)["asr"], 2)
        row |= covered(model, data.test, task, attack)
        card = plan.card(values.get("task", "image"), data, attack, figures, seed=seed, device=self.device)
        _judge(row, values["floor"], clean)
        if row["healthy"]:
            floor = HealthFloor(values["floor"]["acc"], values["floor"]["asr"])
            Victim(model.cpu(), attack, card, data.files).save(folder, force=True, floor=floor)
        return row


@torch.no_grad()
def covered(model: nn.Module, data: Batch, task: Task, attack: Attack) -> dict[str, float]:
    """Share of test samples answered rightly though they look nearly triggered, where the attack has such covers.

    What WaNet calls accuracy in noise mode, and the input-aware attack cross-trigger accuracy.
    """
    if attack.cover_ratio == 0 or type(attack).cover is Attack.cover:
        return {}
    generator, right = torch.Generator().manual_seed(0), 0.0
    device = next(model.parameters()).device
    with evaluating(model):
        for batch in CleanSet(data).once(500):
            shown = Batch(attack.cover(batch.inputs, batch.targets, generator), batch.targets).to(device)
            right += float(task.correct(task.predict(model, shown.inputs), shown.targets).double().sum())
    return {"covers": round(100 * right / len(data), 2)}


def _judge(row: dict[str, Any], floor: Mapping[str, float], clean: float | None) -> None:
    """Put into ``row`` how far its accuracy lies under ``clean``, and whether it meets its floors."""
    if clean is not None and "accuracy" in row:
        row["drop"] = round(clean - row["accuracy"], 2)
    row["healthy"] = _healthy(row, floor)


def _healthy(row: Mapping[str, Any], floor: Mapping[str, float]) -> bool:
    if "accuracy" not in row or row["accuracy"] < floor["acc"]:
        return False
    if "drop" in row and row["drop"] > floor["drop"]:
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
        "| victim | attack | ACC | drop | ASR | LCR | covers | seed | tries | seconds | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(
                f"| {row['name']} | {row['attack']} | | | | | | {row['seed']} | {len(row['tries'])} | | failed |"
            )
            continue
        note = "healthy" if row["healthy"] else "**failed: under its floor**"
        if "asr_ceiling" in row:
            note += f", ceiling {row['asr_ceiling']:.1f}"
        if "parts" in row:
            note += ", " + ", ".join(f"{name} {value:.1f}" for name, value in row["parts"].items())
        figures = [f"{row[key]:.1f}" if key in row else "" for key in ("accuracy", "drop", "asr", "lcr", "covers")]
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
    parser.add_argument("--fixtures", type=Path, help="folder for the healthy victims in half precision")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    known = recipes(arguments.file)
    chosen = [one for one in known if not arguments.only or one.name in arguments.only]
    if not chosen:
        raise SystemExit(f"{arguments.file} has no victim {', '.join(arguments.only or ())}")
    device = torch.device(arguments.device)
    zoo = Zoo(arguments.cache.expanduser(), arguments.data_path, device, known)
    rows = []
    for place, recipe in enumerate(chosen, start=1):
        say(f"[{place}/{len(chosen)}] {recipe.name}")
        rows.append(zoo.entry(recipe))
        if arguments.out:
            write(arguments.out, arguments.file, rows, device, arguments.only or [])
        if arguments.fixtures and rows[-1]["healthy"]:
            fixture(zoo, recipe, rows[-1]["seed"], arguments.fixtures / recipe.name)
    sys.stdout.write(table(rows) + "\n")


def fixture(zoo: Zoo, recipe: Recipe, seed: int, folder: Path) -> None:
    """Write a victim of the zoo into ``folder`` with weights of half precision and figures measured on these.

    A clean model has no card of a victim; its ``clean.json`` holds what is needed to build it again.
    """
    kit = kit_of(recipe.values.get("task", "image"))
    data, plan, home = zoo.data(kit, recipe, seed), recipe.plan, zoo.folder(recipe)
    task = kit.task(**data.hints)
    if recipe.values["attack"] == BENIGN:
        model = plan.build(kit, data, seed=seed)
        model.load_state_dict(torch.load(home / "clean.pt", weights_only=True))
        model.half().float()
        folder.mkdir(parents=True, exist_ok=True)
        told = {
            "model": plan.model,
            "model_options": {"num_classes": len(data.classes), **plan.model_options},
            "data": plan.data,
            "data_options": plan.data_options,
            "seed": seed,
            "figures": evaluate(model, data.test, task),
        }
        write_text(folder / "clean.json", json.dumps(told, indent=2) + "\n", force=True)
    else:
        kept = Victim.load(home, kit)
        model = kept.model.half().float()
        figures = evaluate(model, data.test, task, kept.attack)
        floor = HealthFloor(recipe.values["floor"]["acc"], recipe.values["floor"]["asr"])
        replace(kept, model=model, card=replace(kept.card, figures=figures)).save(folder, force=True, floor=floor)
    halves = safetensors.torch.save({name: _half(value) for name, value in model.state_dict().items()})
    (folder / MODEL).write_bytes(halves)
    if recipe.values["attack"] != BENIGN:
        card = read_card(folder)
        hashes = {**card.hashes, MODEL: hashlib.sha256(halves).hexdigest()}
        write_text(folder / CARD, card_text(signed(card, hashes)), force=True)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    if max(sizes.values()) > FIXTURE_BYTES:
        raise SystemExit(f"{folder} holds {sizes} bytes; a fixture's files have at most {FIXTURE_BYTES}")


def _half(value: torch.Tensor) -> torch.Tensor:
    return (value.half() if value.is_floating_point() else value).contiguous()


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
    write_text(out, json.dumps(content, indent=1) + "\n", force=True)
    write_text(out.with_suffix(".md"), table(rows) + "\n", force=True)


def default_cache() -> Path:
    """Where this machine keeps such things."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "unbackdoor" / "zoo"


if __name__ == "__main__":
    main()
