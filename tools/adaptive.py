"""Train FIP's adaptive attacker at several weights of its penalty and write ACC, ASR and Tr(F) as JSON.

python tools/adaptive.py --out docs/results/fip_adaptive_digits.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.attacker.plan import Plan
from unbackdoor.evaluate import evaluate
from unbackdoor.files.writing import write_text
from unbackdoor.registry import kit
from unbackdoor.report import versions
from unbackdoor.task import Batch, Task

SAMPLES = 1000


def main() -> None:
    """Train, measure and write after each victim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eta-f", nargs="+", type=float, default=[0.0, 1e-3, 1e-2, 3e-2, 1e-1, 1.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for eta_f in arguments.eta_f:
        for seed in arguments.seeds:
            rows.append(victim(eta_f, seed, arguments.epochs))
            sys.stderr.write("  ".join(f"{key} {value}" for key, value in rows[-1].items()) + "\n")
            content = {
                "command": "python tools/adaptive.py " + " ".join(sys.argv[1:]),
                "victim": "smallcnn of width 16, digits of 16 x 16 pixels, BadNets on 10 %, batch 64, lr 0.1",
                "trace": f"mean over {SAMPLES} training samples, a tenth of them poisoned, of the squared norm of the "
                "gradient of all weights, each sample by itself",
                "rows": rows,
                "versions": versions(torch.device("cpu")),
            }
            write_text(arguments.out, json.dumps(content, indent=1) + "\n", force=True)


def victim(eta_f: float, seed: int, epochs: int) -> dict[str, Any]:
    """One row: a trained victim's figures."""
    package = kit("image")
    plan = Plan(
        data="digits",
        data_options={"size": 16},
        model="smallcnn",
        attack="fip-adaptive",
        attack_options={"eta_f": eta_f},
        model_options={"in_channels": 1},
        train_options={"epochs": epochs, "batch_size": 64, "lr": 0.1},
    )
    data = plan.read(package, seed=seed)
    attack = plan.make_attack(package, data)
    assert attack is not None
    start = time.perf_counter()
    model, task = plan.train(package, data, attack, seed=seed, device=torch.device("cpu"))
    seconds = time.perf_counter() - start
    found = evaluate(model, data.test, task, attack=attack)
    some = data.train[slice(0, SAMPLES)]
    places, none = torch.arange(SAMPLES // 10), torch.zeros(0, dtype=torch.long)
    shown = attack.dress(some, places, none, torch.Generator().manual_seed(0))
    return {
        "eta_f": eta_f,
        "seed": seed,
        "ACC": found["accuracy"],
        "ASR": found["asr"],
        "trace": float(squares(model, task, shown).mean()),
        "seconds": round(seconds, 1),
    }


def squares(model: nn.Module, task: Task, batch: Batch) -> Tensor:
    """``||grad nll_i||^2`` of every sample, one backward pass each."""
    weights, rows = list(model.eval().parameters()), []
    for i in range(len(batch)):
        one = batch[slice(i, i + 1)]
        loss = -task.log_likelihood(task.forward(model, one.inputs), one.targets).sum()
        rows.append(torch.stack([slope.square().sum() for slope in torch.autograd.grad(loss, weights)]).sum())
    return torch.stack(rows)


if __name__ == "__main__":
    main()
