"""Measures what training costs beyond the network's own forward and backward passes.

    OMP_NUM_THREADS=1 python tools/training.py --out docs/results/training.json

The raw time is that of forward, loss and backward on one fixed batch in the same layout and precision. Both run in
turns, and the smallest of the repeats counts. On a CPU the time is the process's own (a shared machine does not count),
on a GPU it is the clock's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.training import native_bf16
from unbackdoor.files.writing import write_text
from unbackdoor.report import versions
from unbackdoor.task import Batch
from unbackdoor_image import KIT

ATTACKS = ["none", "badnets", "blend", "wanet", "bppa", "dynamic", "lira"]


def main() -> None:
    """Measure every combination and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="preactresnet18")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--attacks", nargs="+", default=ATTACKS)
    parser.add_argument("--steps", type=int, default=10, help="of each measurement, at 128 images")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    rows = [measured(name, arguments, device) for name in arguments.attacks]
    shown = {key: value for key, value in vars(arguments).items() if key != "out"}
    content = {"options": shown, "threads": torch.get_num_threads(), "rows": rows, "versions": versions(device)}
    write_text(arguments.out, json.dumps(content, indent=1) + "\n", force=True)


def measured(name: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds a step of training and of forward and backward alone, and the seconds of an epoch of 50,000 images."""
    count = 128 * arguments.steps
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    data = Batch(images, torch.arange(count) % 10).to(device)
    splits = Splits(data, data, data, tuple("0123456789"))
    task = KIT.task(flip=True)
    words = {"width": arguments.width} if arguments.model in ("preactresnet18", "smallcnn") else {}
    model = KIT.build(arguments.model, num_classes=10, **words).to(device)
    attack = None if name == "none" else KIT.attacks[name](**({"steps": 1} if name == "dynamic" else {}))
    if attack is not None:
        attack.prepare(data, generator)

    def train() -> None:
        KIT.train(model, splits, task, attack, seed=0, epochs=1)

    fixed = data[slice(0, 128)]
    fixed = Batch(fixed.inputs.contiguous(memory_format=torch.channels_last), fixed.targets)

    def raw() -> None:
        model.to(memory_format=torch.channels_last).train()
        for _ in range(arguments.steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=native_bf16(device)):
                loss = task.loss(task.forward(model, fixed.inputs), fixed.targets)
            model.zero_grad(set_to_none=True)
            loss.backward()

    train(), raw()  # the first call allocates
    times = [(timed(train, device), timed(raw, device)) for _ in range(arguments.repeats)]
    whole, alone = (min(column) / arguments.steps for column in zip(*times, strict=True))
    row = {"attack": name, "step": round(whole, 4), "raw_step": round(alone, 4), "ratio": round(whole / alone, 3)}
    row["epoch_of_50000"] = round(whole * (50000 // 128), 1)
    sys.stderr.write("  ".join(f"{key} {value}" for key, value in row.items()) + "\n")
    return row


def timed(job: Callable[[], None], device: torch.device) -> float:
    """Seconds of ``job``."""
    if device.type != "cuda":
        start = time.process_time()
        job()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    job()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
