"""Processes beside this one: they run no file that happens to lie in the current folder, and they end with this one."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.queues import SimpleQueue
from typing import Any, ParamSpec, TypeVar

__all__ = ["Workers", "end_with", "end_with_parent", "safe_path"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_SAFE = "PYTHONSAFEPATH"
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_LOOK = 1.0


@contextmanager
def safe_path() -> Iterator[None]:
    """Python processes that are started inside do not look for modules in the current folder.

    Without it a file ``multiprocessing.py`` there would run in the place of the library, since a worker is started by
    ``python -c``, which looks there first.
    """
    before = os.environ.get(_SAFE)
    os.environ[_SAFE] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_SAFE, None)
        else:
            os.environ[_SAFE] = before


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 - its name in multiprocessing
        with safe_path():
            return SpawnProcess._Popen(process_obj)


class _Context(SpawnContext):
    Process = _Process


class Workers:
    """Processes of this machine, started afresh so that no lock or thread of torch is copied.

    An interruption is this process's to act on; the workers end when it does, however it ends.
    """

    def __init__(self, count: int, begin: Callable[..., None] | None = None, *arguments: Any) -> None:
        """``count`` at a time; each calls ``begin(*arguments)`` first."""
        self._context = _Context()
        with safe_path():  # a process that watches over semaphores is started with the first of them
            self._pool = ProcessPoolExecutor(
                count, mp_context=self._context, initializer=_begin, initargs=(begin, arguments)
            )

    @staticmethod
    def queue() -> SimpleQueue[Any]:
        """What workers tell their progress by, to be given to ``begin``."""
        with safe_path():
            return _Context().SimpleQueue()

    def submit(self, work: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> Future[_T]:
        """Run ``work`` as soon as there is room."""
        return self._pool.submit(work, *arguments, **named)

    def close(self, *, cancel: bool) -> None:
        """Wait for what runs, or end it."""
        if cancel:
            for process in list((self._pool._processes or {}).values()):
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=cancel)


def _begin(begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    for name in ("SIGINT", "SIGHUP"):  # a terminal sends them to the workers too
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    end_with_parent()
    if begin is not None:
        begin(*arguments)


def end_with_parent() -> None:
    """End this worker of `multiprocessing` as soon as the process that started it has ended, however it did."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":  # at once, even in a long call that lets no thread run
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_after, args=(parent.join,), daemon=True).start()


def end_with(process: int) -> None:
    """End this process as soon as the one with that number on this machine has ended."""
    threading.Thread(target=_end_after, args=(_wait_for, process), daemon=True).start()


def _end_after(wait: Callable[..., object], *arguments: object) -> None:
    wait(*arguments)
    os._exit(1)


def _wait_for(process: int) -> None:
    while True:
        try:
            os.kill(process, 0)
        except PermissionError:
            pass  # it is there, and somebody else's
        except OSError:
            return
        time.sleep(_LOOK)
