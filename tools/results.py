"""Measure methods on victims and write one JSON file: what every table of this repository is made from.

Victims are either trained here from the demo's settings, one for each seed, or read from folders that
``unbackdoor attack`` made. Methods see the clean samples alone; success rates are taken afterwards on the test part.

    python tools/results.py --demo --attack blend --seeds 0 1 2 3 4 --out docs/results/digits_blend.json
    python tools/results.py --victim victims/blend --data-path data --out docs/results/cifar10_blend.json

Several victims of one recipe count as so many seeds, those that they were trained with.

A method may come with options of its own, such as ``--methods nft "nft distil=0.0"``, which its row is then named by.
Rows are written as they come, and ``--append`` adds to those that a file has: long runs can be taken in parts. Parts
that were taken on several machines become one file by ``--join``.

    python tools/results.py --join part_1.json part_2.json --out docs/results/whole.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from shlex import quote
from statistics import mean
from typing import Any

import torch

import unbackdoor
from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.plan import Plan, open_victim
from unbackdoor.files.writing import write_text
from unbackdoor.registry import kit
from unbackdoor.report import versions
from unbackdoor.task import Task
from unbackdoor_cli.allocation import keep_freed_memory

METHODS = ["bn-only", "ft", "nft", "f-fip"]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="image")
    parser.add_argument("--demo", action="store_true", help="train the demo's victim for each seed")
    parser.add_argument("--attack", default="blend", help="of the demo's victims")
    parser.add_argument("--attack-option", nargs=2, action="append", default=[], metavar=("NAME", "JSON"))
    parser.add_argument("--victim", type=Path, nargs="+", default=[], help="folders of victims")
    parser.add_argument("--data-path", help="where the victim's data lie")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--option", nargs=2, action="append", default=[], metavar=("NAME", "JSON"))
    parser.add_argument("--task-option", nargs=2, action="append", default=[], metavar=("NAME", "JSON"))
    parser.add_argument("--preset")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--append", action="store_true", help="add to the rows that --out has")
    parser.add_argument(
        "--join", type=Path, nargs="+", help="files of this script to put together; nothing is measured"
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.join:
        write(arguments.out, joined([json.loads(part.read_text(encoding="utf-8")) for part in arguments.join]))
        return
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    options = {name: json.loads(value) for name, value in arguments.option}
    known = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.append else {"rows": [], "command": ""}
    rows = list(known["rows"])
    command = " && ".join(filter(None, [known["command"], commanded(arguments)]))
    several = len(arguments.victim) > 1
    for given, folder in product(arguments.seeds, arguments.victim or [None]):
        victim, data, task = (
            trained(arguments, given, device) if arguments.demo else read(folder, arguments.data_path, device)
        )
        seed = victim.card.seed if several else given
        card = {"model": victim.card.model, "data": victim.card.data, "attack": victim.card.attack_options}
        card |= {"train": dict(victim.card.train_options), "clean_samples": len(data.clean), "test": len(data.test)}
        if not arguments.demo and not several:
            card["victim_seed"] = victim.card.seed
        expected = known.setdefault("card", json.loads(json.dumps(card)))
        if recipe(json.loads(json.dumps(card))) != recipe(expected) and not arguments.demo:
            raise SystemExit(f"{arguments.out} holds rows of another victim than {folder}")
        further = {name: json.loads(value) for name, value in arguments.task_option}
        task = replace(task, **further) if further else task  # type: ignore[type-var]
        had = next((row for row in rows if (row["method"], row["seed"]) == ("none", seed)), None)
        for row in measured(victim, data, task, arguments.methods, seed, arguments.preset, options, had):
            rows.append(row)
            result = {"command": command, "card": expected, "rows": rows, "mean": averaged(rows)}
            result["task"] = plain_fields(task)
            result["versions"] = versions(device)
            write(arguments.out, result)


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows of parts of one recipe; a part of one victim counts as the seed that this was trained with."""
    first = parts[0]
    cards = [{name: value for name, value in part["card"].items() if name != "victim_seed"} for part in parts]
    if any(
        recipe(card) != recipe(cards[0]) or part["task"] != first["task"]
        for card, part in zip(cards, parts, strict=True)
    ):
        raise SystemExit("the files hold rows of different recipes or tasks")
    rows: list[dict[str, Any]] = []
    for part in parts:
        seed = part["card"].get("victim_seed")
        made = [row if seed is None else row | {"seed": seed} for row in part["rows"]]
        had = {(row["method"], row["seed"]): row for row in rows}
        if any(row["method"] != "none" and (row["method"], row["seed"]) in had for row in made):
            raise SystemExit("two files hold the same method and seed")
        rows += [row for row in made if (row["method"], row["seed"]) not in had]
    command = " && ".join(part["command"] for part in parts)
    return {**first, "command": command, "card": cards[0], "rows": rows, "mean": averaged(rows)}


def write(out: Path, result: dict[str, Any]) -> None:
    """As JSON."""
    write_text(out, json.dumps(result, indent=1) + "\n", force=True)


def recipe(card: dict[str, Any]) -> dict[str, Any]:
    """What victims in one table share: all but the number of samples, which a seed may change by some."""
    return {name: value for name, value in card.items() if name not in ("clean_samples", "test")}


def commanded(arguments: argparse.Namespace, tool: str = "results.py") -> str:
    """The command line of a tool, without the folders of this machine."""
    words = " ".join(["python", f"tools/{tool}", *map(quote, sys.argv[1:])]).replace(" --append", "")
    words = words.replace(str(arguments.out), f"docs/results/{arguments.out.name}").replace(str(Path.home()), "~")
    if arguments.data_path:
        words = words.replace(arguments.data_path, "data")
    for folder in sorted(arguments.victim, key=lambda path: len(str(path)), reverse=True):
        words = words.replace(str(folder), f"victims/{folder.name}")
    return words


def trained(arguments: argparse.Namespace, seed: int, device: torch.device) -> tuple[unbackdoor.Victim, Splits, Task]:
    """The demo's victim, with another attack or seed; figures are there even where the attack did not take."""
    package = kit(arguments.task)
    plan = Plan.of_demo(package, arguments.attack)
    further = {name: json.loads(value) for name, value in arguments.attack_option}
    plan = replace(plan, attack_options={**plan.attack_options, **further})
    data = plan.read(package, seed=seed)
    attack = plan.make_attack(package, data)
    assert attack is not None
    model, task = plan.train(package, data, attack, seed=seed, device=device)
    card = plan.card(arguments.task, data, attack, {}, seed=seed, device=device)
    return named(unbackdoor.Victim(model, attack, card)), data, task


def read(folder: Path, data_path: str | None, device: torch.device) -> tuple[unbackdoor.Victim, Splits, Task]:
    """A victim from its folder."""
    scene = open_victim(folder, device=device, data_path=data_path or None)
    return named(scene.victim), scene.data, scene.task


def named(victim: unbackdoor.Victim) -> unbackdoor.Victim:
    """With the attack's name among its options, as result files have it."""
    options = {"name": victim.card.attack, **victim.card.attack_options}
    return replace(victim, card=replace(victim.card, attack_options=options))


def measured(
    victim: unbackdoor.Victim,
    data: Splits,
    task: Task,
    methods: list[str],
    seed: int,
    preset: str | None,
    options: dict[str, Any],
    had: dict[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """One row for the victim as it is, unless it is there already, and one for each method."""
    if had is None:
        had = {
            "method": "none",
            "seed": seed,
            **rounded(unbackdoor.evaluate(victim.model, data.test, task, victim.attack)),
        }
        yield show(had)
    before = next(value for value in had.values() if isinstance(value, float))
    for method in methods:
        name, *words = method.split()
        own = {key: json.loads(value) for key, _, value in (word.partition("=") for word in words)}
        model, report = unbackdoor.purify(
            victim.model, data.clean, task=task, method=name, seed=seed, preset=preset, **options, **own
        )
        after = unbackdoor.evaluate(model, data.test, task, victim.attack)
        yield show(
            {"method": method, "seed": seed, **rounded(after), "drop": round(before - first(after), 2)}
            | {"seconds": round(report.seconds, 1), "trainable": report.trainable, "total": report.total}
            | {"options": dict(report.options), "rounds": [entry for entry in report.log if "within" in entry]}
        )


def averaged(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean over seeds, and the worst seed's success rate, by method."""
    result = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        keys = [key for key in mine[0] if isinstance(mine[0][key], float) and key != "seed"]
        result[method] = {key: round(mean(row[key] for row in mine), 2) for key in keys}
        result[method]["worst_asr"] = max(row["asr"] for row in mine)
    return result


def plain_fields(task: Task) -> dict[str, Any]:
    """The task's own options, as far as JSON can say them in a word."""
    return {name: value for name, value in vars(task).items() if isinstance(value, str | int | float | bool)}


def first(figures: dict[str, float]) -> float:
    """The headline metric."""
    return next(iter(figures.values()))


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """Two digits after the point."""
    return {name: round(value, 2) for name, value in figures.items()}


def show(row: dict[str, Any]) -> dict[str, Any]:
    """One line on the error stream, since a run takes minutes; gives the row back."""
    words = [f"{key} {value}" for key, value in row.items() if isinstance(value, str | float | int)]
    sys.stderr.write("  ".join(words) + "\n")
    return row


if __name__ == "__main__":
    main()
