"""Train on poisoned data with the defences that train, and without any, and write what came out as JSON.

A defence gets samples and labels alone; ACC, ASR and LCR are taken afterwards on the test part.

    python tools/defences.py --attacks badnets blend --out docs/results/training_defences_digits.json
    python tools/defences.py --data cifar10 --data-path data --samples 4000 --model smallcnn --out FILE
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unbackdoor.attacker.kit import TaskKit
from unbackdoor.attacker.plan import Plan
from unbackdoor.defender.purifier import Progress
from unbackdoor.evaluate import evaluate
from unbackdoor.files.writing import write_text
from unbackdoor.registry import defence, defence_names, kit
from unbackdoor.report import versions


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="image")
    parser.add_argument("--attacks", nargs="+", default=["badnets", "blend"])
    parser.add_argument("--defences", nargs="+", default=defence_names())
    parser.add_argument("--data", help="default: the demo's")
    parser.add_argument("--data-path")
    parser.add_argument("--model", help="default: the demo's")
    parser.add_argument("--samples", type=int, help="of the training part; default: all")
    parser.add_argument("--test", type=int, help="of the test part; default: all")
    parser.add_argument("--option", nargs=2, action="append", default=[], metavar=("DEFENCE.NAME", "JSON"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path, help="the same as a Markdown table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    package = kit(arguments.task)
    rows: list[dict[str, Any]] = []
    for attack in arguments.attacks:
        for seed in arguments.seeds:
            for row in measured(package, arguments, attack, seed):
                rows.append(row)
                sys.stderr.write("  ".join(f"{key} {value}" for key, value in row.items() if key != "options") + "\n")
                content = {
                    "command": command(arguments),
                    "rows": rows,
                    "versions": versions(torch.device("cpu")),
                }
                write_text(arguments.out, json.dumps(content, indent=1) + "\n", force=True)
                if arguments.page:
                    write_text(arguments.page, page(content, arguments.out.name), force=True)


def measured(package: TaskKit, arguments: argparse.Namespace, name: str, seed: int) -> Any:
    """A row for plain training on the poisoned data, and one for each defence."""
    plan = Plan.of_demo(package, name)
    if arguments.data:
        options = {"path": arguments.data_path} if arguments.data_path else {}
        plan = Plan(arguments.data, arguments.model or plan.model, name, data_options=options)
    data = plan.read(package, seed=seed)
    attack = plan.make_attack(package, data)
    assert attack is not None
    task = package.task(**data.hints)
    train, test = data.train, data.test
    if arguments.samples:
        train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: arguments.samples]]
    if arguments.test:
        test = test[slice(0, arguments.test)]
    attack.prepare(train, torch.Generator().manual_seed(seed))
    poisoned = attack.poison(train, torch.Generator().manual_seed(seed))

    def build(number: int) -> torch.nn.Module:
        return plan.build(package, data, seed=number)

    given = {key: json.loads(value) for key, value in arguments.option}
    for kind in ["none", *arguments.defences]:
        own = {key.partition(".")[2]: value for key, value in given.items() if key.partition(".")[0] == kind}
        row: dict[str, Any] = {"attack": name, "seed": seed, "defence": kind}
        row |= {"samples": len(train), "poisoned": len(poisoned.indices), "test": len(test), "model": plan.model}
        if kind == "none":
            model = build(seed)
            options = dict(plan.train_options)
            package.train(model, replace(data, train=poisoned.samples), task, None, seed=seed, **options)
        else:
            method = defence(kind).make(**own)
            model, report = method.train(build, poisoned.samples, task, seed=seed, watch=shown)
            row |= {"seconds": round(report.seconds, 1), "options": dict(report.options)}
            row |= {"log": [entry for entry in report.log if "step" not in entry][-3:]}
        yield row | {key: round(value, 2) for key, value in evaluate(model, test, task, attack).items()}


def page(content: dict[str, Any], source: str) -> str:
    """The rows as a page, made from the JSON alone."""
    first = content["rows"][0]
    made = (
        f"Made by `{content['command']}` (`docs/results/{source}`): {first['model']}, {first['samples']} training "
        f"samples of which {first['poisoned']} are poisoned, {first['test']} test samples. `none` is plain training on "
        "the same data. A defence sees samples and labels alone. Seconds are of the wall clock, on a shared machine."
    )
    lines = [
        "# Defences that train",
        "",
        made,
        "",
        "| attack | seed | defence | ACC | ASR | LCR | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        headline = next(row[key] for key in row if key not in _NOT_FIGURES)
        cells = [row["attack"], str(row["seed"]), row["defence"], f"{headline:.1f}", f"{row['asr']:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{row['lcr']:.1f}", str(row.get("seconds", ""))]) + " |")
    return "\n".join([*lines, ""])


_NOT_FIGURES = ("attack", "seed", "defence", "samples", "poisoned", "test", "model", "seconds", "options", "log")


def shown(now: Progress) -> None:
    """A word on the error stream at the end of a stage."""
    if now.step == now.steps and now.steps > 20:
        sys.stderr.write(f"  {now.message}: {dict(now.scalars)}\n")


def command(arguments: argparse.Namespace) -> str:
    """As it was given, but for where the data lie."""
    words = " ".join(["python", "tools/defences.py", *sys.argv[1:]])
    return words.replace(arguments.data_path, "data") if arguments.data_path else words


if __name__ == "__main__":
    main()
