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
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

__all__ = ["OwnFolder", "abandoned"]

_OWNER = "owner"
_UNFINISHED = "new-"


class OwnFolder:
    """A new folder of this process, and a note in it for whoever finds it.

    Attributes:
        path: Where it is, readable by this user alone.
        note: What its owner wrote down.
    """

    def __init__(self, path: Path, lock: int, note: dict[str, Any]) -> None:
        """Use `make` or `abandoned`."""
        self.path = path
        self.note = note
        self._lock = lock

    @classmethod
    def make(cls, parent: str | Path, prefix: str, **note: Any) -> Self:
        """A folder in ``parent`` whose name begins with ``prefix``; it has its lock before it has that name.

        Raises:
            OSError: It cannot be made.
        """
        draft = Path(tempfile.mkdtemp(prefix=f"{prefix}{_UNFINISHED}", dir=parent))
        lock = -1
        try:
            lock = os.open(draft / _OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            _take(lock)
            os.write(lock, json.dumps({"host": socket.gethostname(), **note}).encode())
            path = draft.with_name(prefix + draft.name.removeprefix(f"{prefix}{_UNFINISHED}"))
            draft.rename(path)
        except BaseException:
            if lock >= 0:
                os.close(lock)
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return cls(path, lock, note)

    @property
    def mark(self) -> list[int]:
        """Numbers that the system gave this folder's lock, which no archive that brings such a folder can know."""
        status = os.fstat(self._lock)
        return [status.st_ino, status.st_ctime_ns]

    def remove(self) -> None:
        """Remove it with all that is in it, and let go of the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()
        shutil.rmtree(self.path, ignore_errors=True)  # some systems remove no open file

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
    except OSError:  # what cannot be listed cannot be tidied
        return
    for place in sorted(found):
        path = Path(place)
        if path.name.startswith(f"{prefix}{_UNFINISHED}"):
            continue  # its maker is at it this moment
        try:
            status = path.lstat()
            if hasattr(os, "getuid") and status.st_uid != os.getuid():
                continue
            lock = os.open(path / _OWNER, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            continue
        if _take(lock):
            with contextlib.suppress(OSError, ValueError):
                note = json.loads(os.read(lock, 2**16))
                if note.pop("host", None) == socket.gethostname():
                    yield OwnFolder(path, lock, note)
                    continue
        os.close(lock)


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
