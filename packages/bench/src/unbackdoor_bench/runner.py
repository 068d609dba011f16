"""Run what is not done yet, and say how far each cell has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from unbackdoor_bench.cells import Cell
from unbackdoor_bench.engines import Engine, Job
from unbackdoor_bench.store import FAILED, Store
from unbackdoor_bench.work import measure

__all__ = ["Beat", "run"]

_LOOK = 0.2


@dataclass(frozen=True)
class Beat:
    """News of a cell: ``kept`` (done before), ``started``, ``moved`` (step of steps) or ``ended`` (with its status)."""

    cell: Cell
    kind: Literal["kept", "started", "moved", "ended"]
    step: int = 0
    steps: int = 0
    status: str = ""


def run(
    cells: Sequence[Cell], store: Store, engine: Engine | None = None, tell: Callable[[Beat], None] | None = None
) -> None:
    """Measure every cell that has no result in ``store``.

    It may be stopped at any time: finished cells stay, and the next call goes on with the others.

    Args:
        cells: Of a `Grid`.
        store: Where results are kept.
        engine: Where cells run; None for this process.
        tell: Called with every `Beat`.
    """
    say = tell or (lambda beat: None)
    todo = []
    for cell in cells:
        if store.finished(cell):
            content = store.read(cell) or {}
            say(Beat(cell, "kept", status=str(content.get("status", ""))))
        else:
            todo.append(cell)
    if engine is None:
        for cell in todo:
            say(Beat(cell, "started"))
            measure(cell, str(store.folder), lambda step, steps, cell=cell: say(Beat(cell, "moved", step, steps)))  # type: ignore[misc]
            say(_ended(cell, store))
        return
    cancel = True
    try:
        _elsewhere(todo, store, engine, say)
        cancel = False
    finally:
        engine.close(cancel=cancel)


def _elsewhere(todo: Sequence[Cell], store: Store, engine: Engine, say: Callable[[Beat], None]) -> None:
    jobs: list[tuple[Cell, Job]] = [(cell, engine.submit(measure, cell, str(store.folder))) for cell in todo]
    beats: dict[str, tuple[int, int]] = {}
    while jobs:
        left = []
        for cell, job in jobs:
            beat = store.last_beat(cell)
            if beat is not None and beats.get(cell.identity) != beat:
                if cell.identity not in beats:
                    say(Beat(cell, "started"))
                beats[cell.identity] = beat
                say(Beat(cell, "moved", *beat))
            if not job.done():
                left.append((cell, job))
                continue
            _settle(cell, job, store)
            say(_ended(cell, store))
        jobs = left
        if jobs:
            time.sleep(_LOOK)


def _settle(cell: Cell, job: Job, store: Store) -> None:
    """A worker that died could not write why; that is done here."""
    try:
        job.result()
    except Exception as error:  # noqa: BLE001 - whatever an engine raises for a dead worker
        if not store.finished(cell):
            names = {"victim": cell.victim, "label": cell.label, "method": cell.method, "seed": cell.seed}
            store.write(cell, {**names, "status": FAILED, "error": f"{type(error).__name__}: {error}"})


def _ended(cell: Cell, store: Store) -> Beat:
    content = store.read(cell)
    return Beat(cell, "ended", status=FAILED if content is None else str(content["status"]))
