"""Where cells run: here, in other processes of this machine, on a Ray cluster or on SLURM.

All engines write into the store's folder, so several machines need a file system that they share.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from unbackdoor.errors import BadOption, UnknownName
from unbackdoor.processes import Workers, end_with, safe_path
from unbackdoor.registry import unknown

__all__ = ["ENGINES", "Engine", "Job", "engine"]

_A_DAY = 24 * 60  # minutes; submitit's own default of 5 ends a method before it has begun


class Job(Protocol):
    """A call that runs somewhere."""

    def done(self) -> bool:
        """Whether it has ended, well or not."""

    def result(self) -> Any:
        """What it returned; raises what it raised."""


class Engine(Protocol):
    """Takes calls and runs some of them at a time."""

    def submit(self, work: Callable[..., None], *arguments: Any) -> Job:
        """Run ``work(*arguments)`` as soon as there is room."""

    def close(self, *, cancel: bool) -> None:
        """Wait for what runs, or give it up."""


class _Processes:
    """Workers of this machine, which end with this process."""

    def __init__(self, workers: int, folder: Path, options: Mapping[str, str]) -> None:
        _none_of(options, "processes")
        self.workers = Workers(workers)

    def submit(self, work: Callable[..., None], *arguments: Any) -> Job:
        return self.workers.submit(work, *arguments)

    def close(self, *, cancel: bool) -> None:
        self.workers.close(cancel=cancel)


class _Ray:
    """A Ray cluster: the one at ``address``, or one that is started on this machine and ended again."""

    def __init__(self, workers: int, folder: Path, options: Mapping[str, str]) -> None:
        self.ray = _needed("ray", "ray")
        address = options.get("address")
        self.gpus = float(options.get("gpus", 0))
        _none_of({key: v for key, v in options.items() if key not in ("address", "gpus")}, "ray")
        self.ours = not self.ray.is_initialized()
        if self.ours:
            local = {} if address else {"num_cpus": workers, "include_dashboard": False}
            with safe_path():
                self.ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)

    def submit(self, work: Callable[..., None], *arguments: Any) -> Job:
        remote = self.ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=0)(work)
        return _RayJob(self.ray, remote.remote(*arguments))

    def close(self, *, cancel: bool) -> None:
        if self.ours:
            self.ray.shutdown()


class _RayJob:
    def __init__(self, ray: ModuleType, reference: Any) -> None:
        self.ray, self.reference = ray, reference

    def done(self) -> bool:
        ready, _ = self.ray.wait([self.reference], timeout=0)
        return bool(ready)

    def result(self) -> Any:
        return self.ray.get(self.reference)


class _Slurm:
    """Jobs of SLURM by submitit; ``cluster=local`` runs the same jobs as processes of this machine.

    A job is submitted when fewer than ``workers`` are on their way: submitit would let all of them run at once.
    """

    def __init__(self, workers: int, folder: Path, options: Mapping[str, str]) -> None:
        submitit = _needed("submitit", "slurm")
        given: dict[str, Any] = {key: int(value) if value.isdigit() else value for key, value in options.items()}
        cluster = str(given.pop("cluster", "slurm"))
        self.executor = submitit.AutoExecutor(folder=str(folder / "slurm"), cluster=cluster)
        self.executor.update_parameters(**{"name": "unbackdoor", "timeout_min": _A_DAY, **given})
        self.local = cluster == "local"
        self.workers = workers
        self.jobs: list[Any] = []

    def submit(self, work: Callable[..., None], *arguments: Any) -> Job:
        call = partial(work, *arguments)
        return _SlurmJob(self, partial(_beside, os.getpid(), call) if self.local else call)

    def started(self, call: Callable[[], None]) -> Any:
        """The job of ``call``; None where there is no room for it yet."""
        self.jobs = [job for job in self.jobs if not job.done()]
        if len(self.jobs) >= self.workers:
            return None
        with safe_path():
            self.jobs.append(self.executor.submit(call))
        return self.jobs[-1]

    def close(self, *, cancel: bool) -> None:
        if cancel:
            for job in self.jobs:
                if not job.done():
                    job.cancel()


def _beside(process: int, call: Callable[[], None]) -> None:
    """A job on this machine, which ends with the process that submitted it; those of a cluster go on."""
    end_with(process)
    call()


class _SlurmJob:
    def __init__(self, engine: _Slurm, call: Callable[[], None]) -> None:
        self.engine, self.call = engine, call
        self.job: Any = None

    def done(self) -> bool:
        """Whoever asks lets the engine look for room, so that nothing runs that nobody waits for."""
        if self.job is None:
            self.job = self.engine.started(self.call)
        return self.job is not None and bool(self.job.done())

    def result(self) -> Any:
        """Raises what went wrong; a finished cell has written its own result."""
        error = None if self.job is None else self.job.exception()
        if error is not None:
            raise RuntimeError(f"the job {self.job.job_id} failed: {error}")


ENGINES: Mapping[str, tuple[str, Callable[[int, Path, Mapping[str, str]], Engine] | None]] = {
    "serial": ("one cell after another in this process", None),
    "processes": ("worker processes of this machine", _Processes),
    "ray": ("a Ray cluster, or Ray on this machine; needs unbackdoor-bench[ray]", _Ray),
    "slurm": ("jobs of SLURM by submitit; needs unbackdoor-bench[slurm]", _Slurm),
}
"""Name to explanation and maker; None runs in the caller's process."""


def engine(name: str, workers: int, folder: Path, options: Mapping[str, str] | None = None) -> Engine | None:
    """The engine ``name``; None for ``"serial"``.

    Args:
        name: One of `ENGINES`.
        workers: Cells at a time.
        folder: Of the store.
        options: Of ``ray``: ``address``, ``gpus`` (of each cell). Of ``slurm``: ``cluster=local`` and submitit's own,
            such as ``slurm_partition``, ``timeout_min``, ``gpus_per_node``.

    Raises:
        UnknownName: There is no such engine.
        BadOption: ``workers`` is below 1, or the engine's package is not installed.
    """
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    if workers < 1:
        raise BadOption(f"workers is {workers}; give at least 1.")
    make = ENGINES[name][1]
    if make is None:
        _none_of(options or {}, name)
        return None
    return make(workers, folder, options or {})


def _none_of(options: Mapping[str, str], name: str) -> None:
    if options:
        raise BadOption(f"the engine {name!r} has no option {', '.join(sorted(options))}.")


def _needed(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnknownName(f'{module} is not installed; pip install "unbackdoor-bench[{extra}]"') from error
