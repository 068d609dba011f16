"""Our methods beside those of BackdoorBench: the same victim, weights, clean samples, options and steps in one process.

Give a checkout of github.com/SCLBD/BackdoorBench; none of its code is here. What runs is its own, on batches that come
from here (`defences.py` says what is set from outside). Ours runs twice: with the peer's options, as far as they can be
said (``matched``), and with its own defaults; `nft` and `f-fip` run with theirs.

    unbackdoor attack --data digits --model preactresnet18 --model-option width=8 --model-option in_channels=1 \
      --attack blend --epochs 15 --out victims/digits_preact
    python tools/peer BACKDOORBENCH --victim victims/digits_preact --out docs/results/peer.json --page docs/peer.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from case import ITS_STEPS, Case, ours
from defences import PAIRS, UNLIKE
from page import page

from unbackdoor.attacker.plan import Scene, open_victim
from unbackdoor.files.writing import write_text
from unbackdoor.report import versions


def main() -> None:
    """Run both sides in turns, write JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", type=Path, help="a checkout of BackdoorBench")
    parser.add_argument("--victim", type=Path, required=True, help="folder of a victim with BatchNorm on images")
    parser.add_argument("--data-path", help="where the victim's data lie")
    parser.add_argument("--steps", type=int, help="of both sides; default: the peer's own number")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="of the timing; the smallest counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--also", nargs="*", default=["nft", "f-fip"], help="methods of ours with their defaults")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    scene = open_victim(arguments.victim, data_path=arguments.data_path)
    case = Case(scene, arguments)
    rows: list[dict[str, Any]] = [{"method": "none", "side": "", **case.measured(case.model)}]
    say(rows[-1])
    for name in arguments.also + arguments.only:
        new = PAIRS[name](case) if name in PAIRS else [ours(case, name, name)]
        rows += new
        for row in new:
            say(row)
        content = content_of(arguments, scene, rows)
        write_text(arguments.out, json.dumps(content, indent=1) + "\n", force=True)
        if arguments.page:
            write_text(arguments.page, page(content, arguments.out.name), force=True)


def content_of(arguments: argparse.Namespace, scene: Scene, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the file says."""
    card = scene.victim.card
    told = " ".join(sys.argv[2:])
    ran = [name for name in arguments.only if any(row["method"] == name for row in rows)]
    return {
        "command": f"python tools/peer BackdoorBench {told}",
        "peer": "github.com/SCLBD/BackdoorBench",
        "commit": commit(arguments.peer),
        "victim": {
            "model": card.model,
            "model_options": dict(card.model_options),
            "data": card.data,
            "attack": card.attack,
            "seed": card.seed,
        },
        "clean": len(scene.data.clean),
        "test": len(scene.data.test),
        "steps": {name: arguments.steps or ITS_STEPS[name] for name in ran},
        "batch_size": arguments.batch_size,
        "clock": "processor time of the process, so that other programs do not count",
        "rows": rows,
        "unlike": {name: UNLIKE[name] for name in ran},
        "versions": versions(torch.device("cpu")),
    }


def commit(folder: Path) -> str:
    """Which commit the checkout is of: written in the file COMMIT where there is no git."""
    note = folder / "COMMIT"
    if note.is_file():
        return note.read_text(encoding="utf-8").strip()
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def say(row: dict[str, Any]) -> None:
    """One line on the error stream."""
    sys.stderr.write("  ".join(f"{key} {value}" for key, value in row.items() if key != "options") + "\n")


if __name__ == "__main__":
    main()
