"""Several methods on one victim at a time, each in a process of its own that has the victim from its folder."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
from torch import nn

import unbackdoor
from unbackdoor.attacker.plan import open_victim
from unbackdoor.attacker.victim import Victim
from unbackdoor.defender.purifier import Progress, Purifier
from unbackdoor.files.folders import temporary
from unbackdoor.processes import Workers
from unbackdoor_cli.allocation import keep_freed_memory

__all__ = ["Tell", "cores", "purify_together"]

Tell = Callable[[int, int, Mapping[str, float]], None]
"""Called with step, steps and scalars."""

_News = tuple[int, int, int, dict[str, float]]
_LOOK = 0.2
_given: list[SimpleQueue[_News]] = []
"""What a process tells its progress by."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def purify_together(
    victim: Victim, purifiers: Sequence[Purifier], tells: Sequence[Tell], *, seed: int, jobs: int
) -> list[tuple[nn.Module, float]]:
    """What each method makes of ``victim``, and its seconds; the figures are those of one method after the other.

    The processes compute on the CPU with one thread each. They take the victim and its data from a folder as
    `unbackdoor.attacker.plan.open_victim` does, so the data must be readable again.

    Args:
        victim: On the CPU.
        purifiers: In the order of the result.
        tells: Progress of each.
        seed: Of every draw.
        jobs: Processes at a time.

    Raises:
        UnbackdoorError: A method refused.
    """
    news: SimpleQueue[_News] = Workers.queue()
    with temporary() as place:
        folder = place.path
        victim.save(folder / "victim")
        workers, cancel = Workers(jobs, _begin, news), True
        try:
            work = {
                number: workers.submit(
                    _purify, folder / "victim", purifiers[number], seed, number, folder / f"{number}.safetensors"
                )
                for number in sorted(range(len(purifiers)), key=lambda number: -_steps(purifiers[number]))
            }
            _follow(list(work.values()), news, tells)
            seconds = [work[number].result() for number in range(len(purifiers))]
            cancel = False
        finally:
            workers.close(cancel=cancel)
        models = [copy.deepcopy(victim.model) for _ in purifiers]
        for number, model in enumerate(models):
            unbackdoor.load(model, folder / f"{number}.safetensors")
    return list(zip(models, seconds, strict=True))


def _steps(purifier: Purifier) -> int:
    """As long as it is likely to take, so that the longest begin first."""
    return int(purifier.options().get("steps", 0))


def _follow(work: Sequence[Future[float]], news: SimpleQueue[_News], tells: Sequence[Tell]) -> None:
    """Pass the progress on until all are done or one has failed."""
    waiting = True
    while waiting:
        done, left = wait(work, timeout=_LOOK)
        waiting = bool(left) and all(future.exception() is None for future in done)
        while not news.empty():
            number, step, steps, scalars = news.get()
            tells[number](step, steps, scalars)


def _begin(news: SimpleQueue[_News]) -> None:
    _given.append(news)
    keep_freed_memory()
    torch.set_num_threads(1)


def _purify(folder: Path, purifier: Purifier, seed: int, number: int, out: Path) -> float:
    scene = open_victim(folder, trust=True)  # this process wrote it
    (news,) = _given

    def watch(now: Progress) -> None:
        news.put((number, now.step, now.steps, dict(now.scalars)))

    model, report = unbackdoor.purify(
        scene.victim.model, scene.data.clean, task=scene.task, method=purifier, seed=seed, watch=watch, anyway=True
    )
    unbackdoor.save(model, out)
    return report.seconds
