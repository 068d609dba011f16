"""Measure one cell; this is what runs in a worker."""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import unbackdoor
from unbackdoor.attacker.plan import Scene, open_victim
from unbackdoor.defender.purifier import Progress
from unbackdoor.errors import BadOption, FileRefused, NonFinite, ResultRefused, UnbackdoorError
from unbackdoor.evaluate import evaluate
from unbackdoor.files.reading import limited, limits
from unbackdoor.measure import clean_metrics
from unbackdoor.registry import method as method_of
from unbackdoor.report import Report, versions
from unbackdoor.task import Batch, Task
from unbackdoor.tree import leaves
from unbackdoor_bench.cells import NONE, Cell
from unbackdoor_bench.engines import Engine, Job
from unbackdoor_bench.memory import peak_of_process
from unbackdoor_bench.oracle import Oracle
from unbackdoor_bench.store import DONE, FAILED, REFUSED, Store

__all__ = ["Limited", "draw_clean", "measure", "steps_of"]

Tell = Callable[[int, int], None]
_BETWEEN_BEATS = 0.5


def measure(cell: Cell, folder: str, tell: Tell | None = None) -> None:
    """Run ``cell`` and keep its result in the store at ``folder``.

    What goes wrong is kept too: ``"refused"`` where the library said no (``"worked"``: after the work, since what came
    out cannot be used), ``"failed"`` where it broke; failed cells run again the next time. A result that a user would
    not get without asking for it is kept with ``"overruled"``: why.

    Args:
        cell: What to measure.
        folder: Of the store.
        tell: Called with step and steps; None writes them into the store, for whoever waits in another process.
    """
    store = Store(folder)
    if cell.threads is not None:
        torch.set_num_threads(cell.threads)
    try:
        content = _measured(cell, tell or _Beats(store, cell))
    except UnbackdoorError as error:
        worked = isinstance(error, ResultRefused | NonFinite)
        content = {"status": REFUSED, "error": str(error), "kind": type(error).__name__, "worked": worked}
    except Exception as error:  # noqa: BLE001 - one broken cell must not stop the others; it is kept by name
        content = {"status": FAILED, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    names = {"victim": cell.victim, "label": cell.label, "method": cell.method, "seed": cell.seed}
    store.write(cell, {**names, **content})


def _measured(cell: Cell, tell: Tell) -> dict[str, Any]:
    scene = _scene(cell.folder, cell.victim_hash, cell.data_path, cell.device, trust=cell.trust)
    victim, task, test = scene.victim, scene.task, scene.data.test
    card = victim.card
    content: dict[str, Any] = {
        "status": DONE,
        "card": {"task": card.task, "model": card.model, "data": card.data, "attack": card.attack, "seed": card.seed},
        "test": len(test),
    }
    if cell.method == NONE:
        figures = evaluate(victim.model, test, task, victim.attack)
        return content | {"figures": figures, "versions": versions(torch.device(cell.device))}
    clean, digest = draw_clean(scene.data.clean, task, cell.clean, cell.seed)
    purifier = method_of(cell.method)(**cell.options)
    oracle = None
    if cell.oracle and victim.attack is not None:
        before = next(iter(clean_metrics(victim.model, test, task).values()))
        oracle = Oracle(lambda model: evaluate(model, test, task, victim.attack), before, cell.oracle_drop)

    def watch(now: Progress) -> None:
        tell(now.step, now.steps)
        if oracle is not None:
            oracle(now)

    with peak_of_process() as peak:
        purified, report = unbackdoor.purify(
            victim.model, clean, task=task, method=purifier, seed=cell.seed, watch=watch, anyway=True
        )
    figures = evaluate(purified, test, task, victim.attack)
    if oracle is not None:
        oracle.look(figures, "end")
    cuda = report.peak_bytes is not None
    return content | {
        "figures": figures,
        "overruled": list(report.overruled),
        "seconds": report.seconds - (0.0 if oracle is None else oracle.seconds),
        "steps": steps_of(report.log),
        "peak_bytes": report.peak_bytes if cuda else None if oracle is not None else peak.bytes,
        "memory": "peak on the device" if cuda else "growth of the process",
        "selection": selection(purifier.options()),
        "clean": {"count": len(clean), "hash": digest},
        "oracle": None if oracle is None else {**(oracle.best or {}), "looks": oracle.looks},
        "report": _plain(report),
        "versions": report.versions,
    }


class Limited:
    """An engine whose calls read files within the limits that hold where this is made; other processes know none."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.limits = engine, asdict(limits())

    def submit(self, work: Callable[..., None], *arguments: Any) -> Job:
        """See `Engine`."""
        return self.engine.submit(_within, self.limits, work, *arguments)

    def close(self, *, cancel: bool) -> None:
        """See `Engine`."""
        self.engine.close(cancel=cancel)


def _within(allowed: Mapping[str, int], work: Callable[..., None], *arguments: Any) -> None:
    with limited(**allowed):
        work(*arguments)


@lru_cache(maxsize=1)
def _scene(folder: str, digest: str, data_path: str | None, device: str, *, trust: bool) -> Scene:
    """One victim at a time in memory; cells come victim by victim, and none of them changes it."""
    scene = open_victim(Path(folder), data_path=data_path, device=device, trust=trust)
    if scene.victim.card.digest != digest:
        raise FileRefused(f"{folder} holds another victim than when the comparison began; start it again.")
    return scene


def draw_clean(clean: Batch, task: Task, count: int | None, seed: int) -> tuple[Batch, str]:
    """The clean samples of a victim and a seed, the same for every method, and a hash of which they are.

    Args:
        clean: All that the victim's data offer.
        task: Says which groups (classes) keep their proportions.
        count: How many to draw; None takes all, in their order.
        seed: Of the draw.

    Raises:
        BadOption: There are not so many.
    """
    total = len(clean)
    if count is not None and not 0 < count <= total:
        raise BadOption(f"{count} clean samples are asked for; the victim's data offer {total} at most.")
    if count is None or count == total:
        index = torch.arange(total)
    else:
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        strata = task.strata(clean.targets)
        groups = torch.zeros(total, dtype=torch.long) if strata is None else strata.cpu().long()
        place = torch.empty(total, dtype=torch.float64)
        for group in groups.unique():
            members = order[groups[order] == group]
            place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
        index = order[place[order].argsort(stable=True)[:count]].sort().values
    digest = hashlib.sha256(index.numpy().tobytes()).hexdigest()[:16]
    device = leaves(clean.targets)[0].device
    return clean[index.to(device)], digest


def steps_of(log: Sequence[Mapping[str, float]]) -> int:
    """Optimiser steps of a run: the last of each stretch in which the logged step rises, added up."""
    total = last = 0
    for entry in log:
        if "step" not in entry:
            continue
        step = int(entry["step"])
        total, last = (total, step) if step >= last else (total + last, step)
    return total + last


def selection(options: Mapping[str, Any]) -> str:
    """By what a method chooses its strength."""
    if "max_clean_drop" in options:
        return f"clean holdout, drop <= {options['max_clean_drop']:g} points"
    return "none, the last step"


def _plain(report: Report) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(report.to_json())
    return content


class _Beats:
    """Tells the store, not more often than somebody would look."""

    def __init__(self, store: Store, cell: Cell) -> None:
        self.store, self.cell = store, cell
        self.last = -1.0

    def __call__(self, step: int, steps: int) -> None:
        now = time.monotonic()
        if step < steps and now - self.last < _BETWEEN_BEATS:
            return
        self.last = now
        with suppress(OSError):  # a full or slow disk must not stop the work
            self.store.beat(self.cell, step, steps)
