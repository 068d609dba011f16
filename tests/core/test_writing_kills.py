"""Killed between any two calls of the operating system, all files are the old ones or all are the new ones."""

from __future__ import annotations

import os
import warnings
from functools import partial

import pytest

from unbackdoor.files.writing import settle, write_together

CALLS = ("open", "close", "write", "fsync", "replace", "rename", "link", "unlink", "mkdir", "rmdir", "chmod")
REAL = {name: getattr(os, name) for name in CALLS}
OLD, NEW = {"weights": "old weights", "report": "old report"}, {"weights": "new weights", "report": "new report"}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Killed(BaseException):
    """No call of the system succeeds any more."""


class Countdown:
    """Lets ``number`` calls of the system through; the next and all after it end as ``end`` says."""

    def __init__(self, patch, number, end, instead=None):
        self.left, self.end, self.handles = number, end, set()
        for name in CALLS:
            patch(os, name, partial(self.call, name, (instead or {}).get(name, getattr(os, name))))

    def call(self, name, real, *given, **named):
        if self.left <= 0:
            self.end()
        self.left -= 1
        result = real(*given, **named)
        if name == "open":
            self.handles.add(result)
        if name == "close":
            self.handles.discard(given[0])
        return result


def die():
    raise Killed


def no_link(source, target):
    raise PermissionError(1, "Operation not permitted", str(source), None, str(target))


def killed_at(number, work, instead):
    """Whether ``work`` was still at it at its ``number``-th call; its locks are let go as the system does."""
    with pytest.MonkeyPatch.context() as patched:
        countdown = Countdown(patched.setattr, number, die, instead)
        try:
            work()
        except Killed:
            return True
        finally:
            for handle in countdown.handles:
                REAL["close"](handle)
    return False


def killed_by_the_system_at(number, work, instead):
    """The same in a process that ends there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads in the parent, which the child does not use
        child = os.fork()
    if child == 0:
        Countdown(setattr, number, partial(os._exit, 9), instead)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def seen(where):
    return {name: path.read_text() for name, path in where.items() if path.exists()}


def left_over(folder):
    """But for the empty folder of a process killed while it made it, which goes after an hour."""
    hidden = [path for path in folder.rglob("*") if path.name.startswith(".")]
    return [path for path in hidden if not path.name.startswith(".unbackdoor-new-")]


def killed_everywhere(folder, before, kill, *, apart=False, instead=None, step=1):
    """Write with one kill after the other; what is there afterwards, each time, once somebody has looked."""
    outcomes = []
    for number in range(0, 300, step):
        here = folder / str(number)
        where = {"weights": here / "weights", "report": here / "apart" / "report" if apart else here / "report"}
        for name, text in before.items():
            where[name].parent.mkdir(parents=True, exist_ok=True)
            where[name].write_text(text)
        writes = {path: partial(_write, text=NEW[name]) for name, path in where.items()}
        killed = kill(number, partial(write_together, writes, force=bool(before)), instead)
        mixed = {text.partition(" ")[0] for text in seen(where).values()} - {""}  # empty: a place held without links
        assert len(mixed) <= 1, (number, seen(where))
        for path in where.values():
            settle(path.parent)
        assert not left_over(here), number
        outcomes.append(seen(where))
        if not killed:
            return outcomes
    raise AssertionError("it never came to an end")


def _write(draft, *, text):
    draft.write_text(text)


ALL = [
    (before, apart, instead)
    for before in ((), ("weights", "report"), ("report",), ("weights",))
    for apart in (False, True)
    for instead in ({}, {"link": no_link})
]
FEW = [
    ((), False, {"link": no_link}),
    (("weights", "report"), False, {}),
    (("weights", "report"), True, {"link": no_link}),
]
FEW += [(("report",), True, {}), ((), True, {})]


@pytest.mark.parametrize(
    ("before", "apart", "instead"),
    [pytest.param(*case, marks=() if case in FEW else pytest.mark.slow) for case in ALL],
)
def test_files_are_all_old_or_all_new_wherever_a_kill_falls(tmp_path, before, apart, instead):
    old = {name: OLD[name] for name in before}
    outcomes = killed_everywhere(tmp_path, old, killed_at, apart=apart, instead=instead)
    assert all(outcome in (old, NEW) for outcome in outcomes)
    assert outcomes[0] == old
    assert outcomes[-1] == NEW


def test_files_are_all_old_or_all_new_when_the_system_kills(tmp_path):
    outcomes = killed_everywhere(tmp_path, OLD, killed_by_the_system_at, step=4)
    assert all(outcome in (OLD, NEW) for outcome in outcomes)
    assert outcomes[0] == OLD
    assert outcomes[-1] == NEW


def test_the_main_file_is_there_at_every_moment(tmp_path):
    for number in range(300):
        where = tmp_path / str(number)
        where.mkdir()
        for name, text in OLD.items():
            (where / name).write_text(text)
        writes = {where / name: partial(_write, text=text) for name, text in NEW.items()}
        killed = killed_at(number, partial(write_together, writes, force=True), {})
        assert (where / "weights").exists()
        if not killed:
            break
