"""Files appear whole or not at all, and several of them together or not at all, whatever kills the process."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unbackdoor.errors import FileRefused
from unbackdoor.files.folders import OwnFolder, abandoned
from unbackdoor.files.placing import Move, identity, place, recover, sync, unfinished

__all__ = ["check_targets", "settle", "write_atomically", "write_text", "write_together"]

_PREFIX = ".unbackdoor-"


def write_atomically(path: str | Path, write: Callable[[Path], Any], *, force: bool = False) -> None:
    """Let ``write`` fill a draft beside ``path`` and put it there, so that no half-written file is seen.

    Raises:
        FileRefused: See `write_together`.
    """
    write_together({Path(path): write}, force=force)


def write_text(path: str | Path, text: str, *, force: bool = False) -> None:
    """The same with ``text`` in UTF-8.

    Raises:
        FileRefused: See `write_together`.
    """
    write_together({Path(path): lambda draft: draft.write_text(text, encoding="utf-8")}, force=force)


def write_together(writes: Mapping[Path, Callable[[Path], Any]], *, force: bool = False) -> None:
    """Let each function fill a draft of its file, then put all of them in place: after a kill all are new or all old.

    Drafts lie in a hidden folder beside their file. Once all are on the disk a journal says where they go, and whoever
    writes there next, or calls `settle`, goes on where this call was killed. Until then no old file is seen beside a
    new one: the others are put aside before the first is replaced, and come after it.

    Args:
        writes: What fills a file of that name, by where it shall be. The first is the main one.
        force: Replace files that exist.

    Raises:
        FileRefused: A file exists and ``force`` is off, two are one file, or one cannot be written: it is no regular
            file, or the system refuses. All are as they were.
    """
    targets = [Path(os.path.abspath(path)) for path in writes]  # noqa: PTH100 - resolve() would follow links
    check_targets(targets, force=force)
    made: list[Path] = []
    folders: dict[Path, OwnFolder] = {}
    moves: list[Move] = []
    done = False
    try:
        for target, write in zip(targets, writes.values(), strict=True):
            with _refusing(target):
                moves.append(_written(_draft_of(target, made, folders), target, write))
        if moves:
            with _refusing(targets[0]):
                place(moves, folders[targets[0].parent], force=force)
        done = True
    finally:
        _close(list(folders.values()))
        for parent in reversed([] if done else made):
            with contextlib.suppress(OSError):
                parent.rmdir()


def check_targets(paths: Sequence[str | Path], *, force: bool = False) -> None:
    """Refuse files that could not be written together; ask before the work, since `write_together` asks after it.

    Raises:
        FileRefused: See `write_together`.
    """
    seen: dict[str, Path] = {}
    for path in map(Path, paths):
        with _refusing(path):
            found = _status(path)
            if found is not None:
                _check_kind(path, found)
                if not force:
                    raise FileRefused(f"{path} exists; choose another name or allow overwriting (force=True, --force).")
            _check_above(path)
            key = os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118
            for of, other in seen.items():
                if of == key or (found is not None and _status(other) is not None and path.samefile(other)):
                    raise FileRefused(f"{other} and {path} are one file; give each a name of its own.")
            seen[key] = path


def settle(folder: str | Path) -> None:
    """Finish or undo what killed processes of this user left half-placed in ``folder``, and remove their drafts."""
    for found in abandoned(folder, _PREFIX):
        main = Path(os.path.normpath(Path(folder, found.note.get("main", found.path.name))))
        if main.name == found.path.name:
            _close([found])
            continue
        if main.is_dir():
            settle(main.parent)
        if main.is_dir():
            found.release()
        else:
            found.remove()


def _close(folders: Sequence[OwnFolder]) -> None:
    """Remove drafts, but not before what was begun is done or undone; the first folder may hold a journal."""
    for main in folders[:1]:
        with contextlib.suppress(OSError):
            recover(main)
        if unfinished(main):
            for folder in folders:
                folder.release()
            return
    for folder in reversed(folders):
        folder.remove()


def _draft_of(target: Path, made: list[Path], folders: dict[Path, OwnFolder]) -> Path:
    """An empty draft for ``target``, with the rights that a new file has."""
    parent = target.parent
    for above in reversed([above for above in (parent, *parent.parents) if not above.exists()]):
        above.mkdir(exist_ok=True)
        made.append(above)
    if parent not in folders:
        settle(parent)
        main = next(iter(folders.values()), None)
        note = {} if main is None else {"main": os.path.relpath(main.path, parent)}
        folders[parent] = OwnFolder.make(parent, _PREFIX, **note)
    drafts = folders[parent].path / "drafts"
    for kept in (drafts, drafts.with_name("aside")):
        kept.mkdir(exist_ok=True)
    draft = drafts / target.name
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError as error:  # on a file system that does not tell a from A
        raise FileRefused(f"{target} and another file to write are one file; give each a name of its own.") from error
    return draft


def _written(draft: Path, target: Path, write: Callable[[Path], Any]) -> Move:
    old = _status(target)
    mode = stat.S_IMODE((old or draft.stat()).st_mode)
    try:
        write(draft)
    except FileRefused as error:  # of a writer that goes through here as well: nobody has asked for a draft
        raise FileRefused(str(error).replace(str(draft), str(target))) from error
    if stat.S_IMODE(draft.stat().st_mode) != mode:  # some file systems know one only and refuse to be asked
        draft.chmod(mode)
    sync(draft)
    return Move(draft, target, draft.parent.with_name("aside") / target.name, identity(target), identity(draft))


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _check_kind(path: Path, found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise FileRefused(f"{path} is a link to {path.readlink()}; give the name of the file itself, or a new one.")
    if stat.S_ISDIR(found.st_mode):
        raise FileRefused(f"{path} is a folder; give the name of a file.")
    if not stat.S_ISREG(found.st_mode):
        raise FileRefused(f"{path} is a device, pipe or socket; give the name of a file.")


def _check_above(path: Path) -> None:
    """The folder can be written to, or made."""
    above = Path(os.path.abspath(path)).parent  # noqa: PTH100
    while not above.exists():
        if above.is_symlink():
            raise FileRefused(f"cannot write {path}: {above} is a link to nothing.")
        _status(above)  # raises for a name that is too long
        above = above.parent
    if not above.is_dir():
        raise FileRefused(f"cannot write {path}: {above} is not a folder.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise FileRefused(f"cannot write {path}: no permission to write in {above}.")
    for part in Path(os.path.abspath(path)).relative_to(above).parts:  # noqa: PTH100
        _status(above / part)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """What the system says of ``path`` becomes our error; what it says of another file stays."""
    try:
        yield
    except FileRefused:
        raise
    except OSError as error:
        raise FileRefused(f"cannot write {path}: {error.strerror or error}.") from error
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise FileRefused(f"cannot write {str(path)!r}: {error}.") from error
