"""Measure the geometry of point clouds against loops and, where it is installed, torch-cluster; writes JSON.

Each figure is the median of processor seconds over several runs, so that other work on the machine matters little.
The loops are what the tests compare with: one point after the other, in Python.

    python tools/points.py --out docs/results/points.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from unbackdoor.files.writing import write_text
from unbackdoor.report import versions
from unbackdoor_pointcloud.geometry import ball_query, farthest_points, nearest, pick


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--points", type=int, default=1024)
    parser.add_argument("--centres", type=int, default=128)
    parser.add_argument("--neighbours", type=int, default=16)
    parser.add_argument("--radius", type=float, default=0.25)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    points = torch.randn(arguments.batch, 3, arguments.points, generator=torch.Generator().manual_seed(0))
    points = points / points.norm(dim=1, keepdim=True)
    centres = pick(points, farthest_points(points, arguments.centres))
    count, near = arguments.centres, (arguments.radius, arguments.neighbours)
    one, middle = points[:1], centres[:1]
    pairs: list[tuple[str, Callable[[], Tensor], Callable[[], Tensor]]] = [
        ("farthest points", lambda: farthest_points(points, count), lambda: slow_farthest(one, count)),
        ("ball query", lambda: ball_query(points, centres, *near), lambda: slow_ball(one, middle, *near)),
        ("nearest", lambda: nearest(points, centres, near[1]), lambda: slow_nearest(one, middle, near[1])),
    ]
    rows = [measured(what, fast, arguments.runs, slow, arguments.batch) for what, fast, slow in pairs]
    if importlib.util.find_spec("torch_cluster"):
        rows[0]["torch_cluster_seconds"] = clustered(points, arguments)
    result = {
        "settings": {key: value for key, value in vars(arguments).items() if key != "out"},
        "machine": f"{platform.machine()}, one thread",
        "torch_cluster": "measured" if importlib.util.find_spec("torch_cluster") else "not installed",
        "rows": rows,
        "versions": versions(torch.device("cpu")),
    }
    write_text(arguments.out, json.dumps(result, indent=1) + "\n", force=True)


def measured(
    name: str, fast: Callable[[], Tensor], runs: int, slow: Callable[[], Tensor], batch: int
) -> dict[str, Any]:
    """Seconds of ``fast``, of ``slow`` on one cloud times ``batch``, their ratio, and whether they agree."""
    first = fast()
    seconds = median(processor(fast) for _ in range(runs))
    start = time.process_time()
    expected = slow()
    naive = batch * (time.process_time() - start)
    return {
        "what": name,
        "seconds": round(seconds, 5),
        "loop_seconds": round(naive, 3),
        "ratio": round(naive / seconds, 1),
        "agrees": bool(torch.equal(first[:1], expected)),
    }


def processor(call: Callable[[], Any]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def slow_farthest(points: Tensor, count: int) -> Tensor:
    """One point at a time, with the distance of every point to every chosen one updated in Python."""
    (cloud,) = points.transpose(1, 2).tolist()
    apart, chosen = [float("inf")] * len(cloud), [0]
    while len(chosen) < count:
        x, y, z = cloud[chosen[-1]]
        for n, (a, b, c) in enumerate(cloud):
            apart[n] = min(apart[n], (a - x) ** 2 + (b - y) ** 2 + (c - z) ** 2)
        chosen.append(max(range(len(cloud)), key=apart.__getitem__))
    return torch.tensor([chosen])


def gaps(cloud: list[list[float]], centre: list[float]) -> list[float]:
    """Squared distances of all points from a centre."""
    x, y, z = centre
    return [(a - x) ** 2 + (b - y) ** 2 + (c - z) ** 2 for a, b, c in cloud]


def slow_ball(points: Tensor, centres: Tensor, radius: float, count: int) -> Tensor:
    """One centre at a time."""
    (cloud,), (middle,) = points.transpose(1, 2).tolist(), centres.transpose(1, 2).tolist()
    rows = []
    for centre in middle:
        inside = [n for n, gap in enumerate(gaps(cloud, centre)) if gap <= radius**2]
        rows.append((inside + inside[:1] * count)[:count])
    return torch.tensor([rows])


def slow_nearest(points: Tensor, centres: Tensor, count: int) -> Tensor:
    """One centre at a time."""
    (cloud,), (middle,) = points.transpose(1, 2).tolist(), centres.transpose(1, 2).tolist()
    rows = []
    for centre in middle:
        found = gaps(cloud, centre)
        rows.append(sorted(range(len(cloud)), key=found.__getitem__)[:count])
    return torch.tensor([rows])


def clustered(points: Tensor, arguments: argparse.Namespace) -> float:
    """Median seconds of torch-cluster's farthest-point sampling on the same clouds."""
    import torch_cluster

    flat = points.transpose(1, 2).reshape(-1, 3)
    owner = torch.arange(len(points)).repeat_interleave(points.shape[2])
    share = arguments.centres / points.shape[2]
    return median(
        processor(lambda: torch_cluster.fps(flat, owner, share, random_start=False)) for _ in range(arguments.runs)
    )


if __name__ == "__main__":
    main()
