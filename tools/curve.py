"""Clean accuracy and success rate along a purification, as JSON: what a method pays for how much of a backdoor.

The model is looked at from outside, through the `Watch` of a purification, which nothing can stop by what it sees;
the method sees the clean samples alone.

    python tools/curve.py --victim victims/utd_uat_2 --data-path data --methods nft f-fip --out FILE
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from results import commanded

import unbackdoor
from unbackdoor.attacker.plan import Scene, open_victim
from unbackdoor.defender.purifier import Progress
from unbackdoor.files.writing import write_text
from unbackdoor.report import versions
from unbackdoor_cli.allocation import keep_freed_memory


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victim", type=Path, nargs="+", required=True, help="folders of victims")
    parser.add_argument("--data-path", help="where the victims' data lie")
    parser.add_argument("--methods", nargs="+", default=["nft", "f-fip"])
    parser.add_argument("--option", nargs=2, action="append", default=[], metavar=("NAME", "JSON"))
    parser.add_argument("--every", type=int, default=100, help="steps from one point to the next")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    options = {name: json.loads(value) for name, value in arguments.option}
    curves: list[dict[str, Any]] = []
    for folder in arguments.victim:
        scene = open_victim(folder, data_path=arguments.data_path)
        for method in arguments.methods:
            curves.append(followed(scene, method, options, arguments.every))
            content = {
                "command": commanded(arguments, "curve.py"),
                "curves": curves,
                "versions": versions(torch.device("cpu")),
            }
            write_text(arguments.out, json.dumps(content, indent=1) + "\n", force=True)


def followed(scene: Scene, method: str, options: dict[str, Any], every: int) -> dict[str, Any]:
    """One purification with the figures of the test part on its way; the first point is the victim as it is."""
    victim, seed = scene.victim, scene.victim.card.seed
    points: list[dict[str, Any]] = []
    counted = {"done": 0, "last": 0}

    def look(model: torch.nn.Module, **said: Any) -> None:
        figures = unbackdoor.evaluate(model, scene.data.test, scene.task, victim.attack)
        points.append(said | {name: round(value, 2) for name, value in figures.items()})
        sys.stderr.write(f"{victim.card.attack} {seed} {method}: {points[-1]}\n")

    def watch(progress: Progress) -> None:
        if progress.step <= counted["last"]:  # another round began
            counted["done"] += counted["last"]
        counted["last"] = progress.step
        step = counted["done"] + progress.step
        if step - points[-1]["step"] >= every or progress.step == progress.steps:
            look(progress.model, step=step, message=progress.message)

    look(victim.model, step=0, message="")
    _, report = unbackdoor.purify(
        victim.model, scene.data.clean, task=scene.task, method=method, seed=seed, watch=watch, **options
    )
    said = {"attack": victim.card.attack, "seed": seed, "method": method, "options": dict(report.options)}
    return said | {"points": points, "left": [entry["left"] for entry in report.log if "left" in entry]}


if __name__ == "__main__":
    main()
