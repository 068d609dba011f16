"""Folders that belong to one process: what a killed process left can be told from what is in use.

The owner holds a lock in its folder for as long as it lives, and the operating system lets go of it however it dies.
Numbers of processes would not do: they are given out again, and differ from container to container.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

__all__ = ["OwnFolder", "abandoned", "temporary", "tidy"]

_OWNER = "owner"
_TEMPORARY = "unbackdoor-"
_UNFINISHED = "new-"
_LONG_AGO = 3600.0  # seconds, for what takes microseconds


class OwnFolder:
    """A new folder of this process, and a note in it for whoever finds it.

    Attributes:
        path: Where it is, readable by this user alone.
        note: What its owner wrote down.
    """

    def __init__(self, path: Path, lock: int, note: dict[str, str]) -> None:
        """Use `make` or `abandoned`."""
        self.path = path
        self.note = note
        self._lock = lock

    @classmethod
    def make(cls, parent: str | Path, prefix: str, **note: str) -> Self:
        """A folder in ``parent`` whose name begins with ``prefix``; it has its lock before it has that name.

        Raises:
            OSError: It cannot be made.
        """
        draft = Path(tempfile.mkdtemp(prefix=f"{prefix}{_UNFINISHED}", dir=parent))
        path = draft.with_name(prefix + draft.name.removeprefix(f"{prefix}{_UNFINISHED}"))
        lock = -1
        try:
            lock = os.open(draft / _OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            _take(lock)
            os.write(lock, json.dumps({"host": socket.gethostname(), **note}).encode())
            draft.rename(path)
        except BaseException:
            if lock >= 0:
                os.close(lock)
            for made in (draft, path):
                shutil.rmtree(made, ignore_errors=True)
            raise
        return cls(path, lock, note)

    @property
    def mark(self) -> list[int]:
        """Numbers that the system gave this folder's lock, which no archive that brings such a folder can know."""
        status = os.fstat(self._lock)
        return [status.st_ino, status.st_ctime_ns]

    def remove(self) -> None:
        """Remove it with all that is in it, its lock last, and let go of that."""
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self.path)):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                elif entry.name != _OWNER:
                    Path(entry.path).unlink(missing_ok=True)
        if sys.platform == "win32":
            self.release()  # no open file can be removed there
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Let go of the lock and leave the folder to whoever finds it next."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def abandoned(parent: str | Path, prefix: str) -> Iterator[OwnFolder]:
    """Folders in ``parent`` that `OwnFolder.make` made for a process of this user and machine that is dead.

    They belong to this process from then on.
    """
    try:
        found = [entry.path for entry in os.scandir(parent) if entry.name.startswith(prefix)]
    except (OSError, ValueError):  # what cannot be listed cannot be tidied
        return
    for place in sorted(found):
        path = Path(place)
        try:
            status = path.lstat()
            if hasattr(os, "getuid") and status.st_uid != os.getuid():
                continue
            if path.name.startswith(f"{prefix}{_UNFINISHED}"):  # it has no lock yet, and is empty
                if time.time() - status.st_mtime > _LONG_AGO:
                    shutil.rmtree(path, ignore_errors=True)
                continue
            lock = os.open(path / _OWNER, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:  # its removal was all but done
            with contextlib.suppress(OSError):
                path.rmdir()
            continue
        except OSError:
            continue
        note = _note(lock) if stat.S_ISREG(os.fstat(lock).st_mode) and _take(lock) else {}
        if note.pop("host", None) == socket.gethostname():
            yield OwnFolder(path, lock, note)
        else:
            os.close(lock)


def temporary() -> OwnFolder:
    """A folder for as long as it is used, where the system keeps such; those of killed processes are removed first.

    Raises:
        OSError: It cannot be made.
    """
    tidy()
    return OwnFolder.make(tempfile.gettempdir(), _TEMPORARY)


def tidy() -> None:
    """Remove the temporary folders of this user's processes that were killed."""
    for found in abandoned(tempfile.gettempdir(), _TEMPORARY):
        found.remove()


def _note(lock: int) -> dict[str, str]:
    """What an owner wrote; nothing where it is no such note, since anybody may have made the folder."""
    try:
        note = json.loads(os.read(lock, 2**16))
    except (OSError, ValueError, RecursionError):
        return {}
    fits = isinstance(note, dict) and all(isinstance(value, str) and "\0" not in value for value in note.values())
    return note if fits else {}


def _take(lock: int) -> bool:
    """Whether the lock is ours now; where the system has none it never is, and nothing is taken for abandoned."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
