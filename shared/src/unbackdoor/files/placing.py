"""Drafts are put in the place of files so that, wherever this is killed, the rest can be done or undone later.

A journal beside the drafts says what goes where. Before it is there nothing has been moved, so all files are the old
ones; once it is there `place` can be called again, as often as it is killed, until all are new. Where a file cannot be
put in place, the journal is renamed, and from then on the same holds for the way back.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbackdoor.errors import FileRefused, UnbackdoorError
from unbackdoor.files.folders import OwnFolder
from unbackdoor.files.reading import read_json

__all__ = ["Move", "identity", "place", "recover", "sync", "unfinished"]

_JOURNAL, _UNDO = "journal.json", "undo.json"
_PATHS = ("draft", "target", "aside")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class Move:
    """One draft, where it goes, where what lies there is put aside, and what tells the two apart."""

    draft: Path
    target: Path
    aside: Path
    old: list[int] | None
    new: list[int] | None
    resumed: bool = False

    @property
    def found(self) -> list[int] | None:
        """What lies at the target now."""
        return identity(self.target)

    @property
    def done(self) -> bool:
        """Whether the draft was put in place."""
        return not self.draft.exists() or self.found == self.new

    @property
    def reserved(self) -> bool:
        """Whether the empty file that held the place, where files have one name only, was left by a kill."""
        return self.resumed and self.old is None and self.found is not None and not self.target.stat().st_size

    @property
    def foreign(self) -> bool:
        """Whether somebody else has put something there in the meantime."""
        return self.found not in (None, self.old, self.new) and not self.reserved


def identity(path: Path) -> list[int] | None:
    """What tells one file from another of the same name; None where there is none."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def place(moves: Sequence[Move], folder: OwnFolder, *, force: bool) -> None:
    """Put all drafts in place, or none; where this is interrupted, call `recover`.

    Args:
        moves: The first is the main file, which is never missing where it was there before.
        folder: For the journal.
        force: Replace what is there.

    Raises:
        OSError: The system refused; all is as it was.
        FileRefused: A file is there and ``force`` is off; all is as it was.
    """
    if len(moves) > 1:
        _write_journal(moves, folder, force=force)
    _go_on(moves, folder.path, force=force)


def recover(folder: OwnFolder) -> None:
    """Do the rest of what an interrupted `place` began, or undo it where that cannot be done or others were faster.

    A journal that was not written here, but came with an archive, say, is left alone.
    """
    undo, journal = (folder.path / name for name in (_UNDO, _JOURNAL))
    for path in (undo, journal):
        if path.is_file():
            try:
                content = read_json(path, what="journal")
            except UnbackdoorError:
                return
            if content.get("mark") != folder.mark:
                return
            moves = [_read(move, folder.path) for move in content["moves"]]
            if path == undo or any(move.foreign and not move.done for move in moves):
                _back(moves, folder.path)
            else:
                with contextlib.suppress(FileRefused):
                    _go_on(moves, folder.path, force=content["force"])
            return


def unfinished(folder: OwnFolder) -> bool:
    """Whether there is still something for `recover` to do."""
    return any((folder.path / name).exists() for name in (_UNDO, _JOURNAL))


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk, where the system can tell."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(handle)


def _read(written: Mapping[str, Any], folder: Path) -> Move:
    draft, target, aside = (Path(os.path.normpath(folder / written[key])) for key in _PATHS)
    return Move(draft, target, aside, written["old"], written["new"], resumed=True)


def _write_journal(moves: Sequence[Move], folder: OwnFolder, *, force: bool) -> None:
    for path in dict.fromkeys(path for move in moves for path in (move.draft.parent, move.target.parent)):
        sync(path)
    listed = [
        {key: os.path.relpath(getattr(move, key), folder.path) for key in _PATHS} | {"old": move.old, "new": move.new}
        for move in moves
    ]
    draft = folder.path / f"{_JOURNAL}.draft"
    draft.write_text(json.dumps({"mark": folder.mark, "force": force, "moves": listed}), encoding="utf-8")
    sync(draft)
    draft.rename(folder.path / _JOURNAL)
    sync(folder.path)


def _go_on(moves: Sequence[Move], folder: Path, *, force: bool) -> None:
    try:
        _forward(moves, force=force)
    except FileExistsError as error:
        _back(moves, folder)
        path = error.filename2 or error.filename
        raise FileRefused(f"{path} exists; choose another name or allow overwriting (force=True, --force).") from error
    except OSError:
        _back(moves, folder)
        raise
    for parent in {move.target.parent for move in moves}:
        sync(parent)
    (folder / _JOURNAL).unlink(missing_ok=True)


def _forward(moves: Sequence[Move], *, force: bool) -> None:
    """No new file is seen beside an old one: all old ones but the main one go first, and the main one is replaced."""
    main, *others = moves
    if force:
        for move in others:
            if not move.done and move.target.exists():
                move.target.replace(move.aside)
        if others and not main.done and main.target.exists() and not main.aside.exists():
            _keep(main)
    for move in moves:
        if not move.done:
            _put(move, force=force)


def _keep(move: Move) -> None:
    """Another name for the old file, so that it can come back."""
    try:
        os.link(move.target, move.aside)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        move.target.replace(move.aside)


def _put(move: Move, *, force: bool) -> None:
    if force or move.reserved:
        move.draft.replace(move.target)
        return
    try:
        os.link(move.draft, move.target)
        move.draft.unlink()
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(move.target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        try:
            move.draft.replace(move.target)
        except OSError:
            move.target.unlink()
            raise


def _back(moves: Sequence[Move], folder: Path) -> None:
    """The same rule on the way back: new ones go, the main one comes back, then the others do."""
    if (folder / _JOURNAL).exists():
        (folder / _JOURNAL).rename(folder / _UNDO)
        sync(folder)
    main, *others = moves
    ours = [move for move in moves if not move.foreign]
    for move in others:
        if move in ours and move.found is not None and (move.reserved or move.found == move.new):
            move.target.unlink()
    for move in moves:
        if move not in ours:
            continue
        if move.aside.exists():
            move.aside.replace(move.target)
        elif move is main and move.old is None and move.found is not None:
            move.target.unlink()
    for parent in {move.target.parent for move in moves}:
        sync(parent)
    (folder / _UNDO).unlink(missing_ok=True)
