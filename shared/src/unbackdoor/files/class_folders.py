"""Folders whose names are the classes of the files below them: the one reader of this form for every task."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.errors import BadData, FileRefused
from unbackdoor.files.class_names import given_classes, listed, place_names
from unbackdoor.files.reading import reading, shown

__all__ = ["ClassFolders", "files_below", "find_parts", "read_class_folders"]

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation")
_OF_TOOLS = ("__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found")
_FILES_OF_TOOLS = ("thumbs.db", "ehthumbs.db", "desktop.ini")


@dataclass(frozen=True)
class ClassFolders:
    """What was found.

    Attributes:
        files: Sorted within each class.
        labels: Class indices, int64 of shape ``(n,)``.
        classes: All class names, in label order.
        names: The files' names from the folder on, for messages.
        notices: What was left out, a line each.
    """

    files: tuple[Path, ...]
    labels: Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]
    notices: tuple[str, ...]


def read_class_folders(
    root: str | Path,
    endings: Collection[str],
    *,
    what: str = "files",
    classes: Sequence[str] | None = None,
    order: str | None = None,
) -> ClassFolders:
    """All files with one of ``endings`` below the class folders of ``root``, at any depth.

    Hidden files and folders, and those that tools leave behind, are passed over. Links are followed, but not into a
    folder that is read anyway or that holds ``root``.

    Args:
        root: Holds one folder for each class.
        endings: Of the files that are wanted, in lower case with their dot.
        what: How to call those files.
        classes: All class names in the order of the model's outputs; folders may then be missing.
        order: For folders named by numbers, see `unbackdoor.files.class_names.place_names`.

    Raises:
        FileRefused: There is no such folder, or one may not be read.
        BadData: There are no class folders, or parts such as ``train`` in their place, or a label is in doubt.
        BadOption: ``classes`` or ``order`` is not allowed.
    """
    root, named = Path(root), given_classes(classes)
    folders = _class_folders(root, what)
    walk = _Walk(root, tuple(folders.values()), frozenset(endings))
    files = {name: walk.files_below(folder) for name, folder in folders.items()}
    loose = walk.files_beside()
    loose_names = sorted(path.name for path in loose)
    kinds = ", ".join(sorted(endings))
    if not any(files.values()):
        hint = f" The {len(loose)} {what} in it lie in no folder that names their class." if loose else ""
        raise BadData(
            f"{shown(root)} holds no class folders with {what} ({kinds}).{hint} {walk.other_kinds()}".rstrip()
        )
    if named is None or not set(folders) <= set(named):
        _refuse_parts(root, folders, files, what)
    labels, known = place_names(list(folders), named, order, f"the class folders of {shown(root)}")
    empty = [name for name, found in files.items() if not found]
    notices = walk.notices(what)
    if empty:
        notices.insert(0, f"Class folders of {shown(root)} without {what}: {listed(empty)}.")
    if loose:
        notices.append(f"Left out, since they lie in no class folder of {shown(root)}: {listed(loose_names)}.")
    found = [(path, labels[name]) for name, paths in files.items() for path in paths]
    return ClassFolders(
        tuple(path for path, _ in found),
        torch.tensor([label for _, label in found], dtype=torch.int64),
        tuple(map(shown, known)),
        tuple(shown(path.relative_to(root).as_posix()) for path, _ in found),
        tuple(notices),
    )


def files_below(folder: str | Path, endings: Collection[str]) -> list[Path]:
    """All files with one of ``endings`` below ``folder``, sorted; what is passed over is as for `read_class_folders`.

    Args:
        folder: Where to look, at any depth.
        endings: In lower case with their dot.

    Raises:
        FileRefused: There is no such folder, or one may not be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileRefused(f"no folder at {shown(root)}; check the path.")
    return _Walk(root, (), frozenset(endings)).files_below(root)


def find_parts(root: str | Path, what: str = "files") -> tuple[Path, Path | None]:
    """Where the class folders for training and for testing lie: below ``train`` and ``test`` (or ``val``) of ``root``.

    Without such folders ``root`` itself holds the classes, and there is no test part.

    Raises:
        FileRefused: There is no such folder.
        BadData: There is a test part alone.
    """
    root = Path(root)
    folders = _class_folders(root, what)
    by_name = {name.lower(): folder for name, folder in folders.items()}
    train = next((by_name[name] for name in _TRAIN if name in by_name), None)
    test = next((by_name[name] for name in _TEST if name in by_name), None)
    if train is not None and (test is not None or len(folders) == 1 or _folders_of(train)):
        return train, test
    if test is not None and train is None and all(name in _TEST for name in by_name):
        raise BadData(f"{shown(root)} holds {listed(list(folders))} without train; give {shown(test)} itself.")
    return root, None


def _refuse_parts(root: Path, folders: dict[str, Path], files: dict[str, list[Path]], what: str) -> None:
    """``train`` and ``val`` are no classes; neither is the one folder that holds all the class folders."""
    parts = [name for name in folders if name.lower() in (*_TRAIN, *_TEST)]
    sides = {name.lower() in _TRAIN for name in parts}
    deep = [name for name in parts if files[name] and all(path.parent != folders[name] for path in files[name])]
    if parts and (len(sides) == 2 or len(parts) == len(folders) or deep):
        give = next((name for name in (*deep, *parts) if name.lower() in _TRAIN), (deep or parts)[0])
        raise BadData(
            f"{shown(root)} holds {listed(parts)}, parts of a data set where classes are expected; give the one whose "
            f"{what} are meant, such as {shown(folders[give])}, or name these classes with classes=...."
        )
    if len(folders) == 1:
        ((name, folder),) = folders.items()
        inner = sorted({path.relative_to(folder).parts[0] for path in files[name] if path.parent != folder})
        if len(inner) > 1 and all(path.parent != folder for path in files[name]):
            raise BadData(
                f"{shown(root)} holds the one folder {shown(name)}, and that the folders {listed(inner)}; if these are "
                f"the classes, give {shown(folder)}, else name all classes with classes=...."
            )


def _class_folders(root: Path, what: str) -> dict[str, Path]:
    if not root.is_dir():
        raise FileRefused(f"no folder at {shown(root)}; give one that holds a folder of {what} for each class.")
    found, own = _folders_of(root), Path(os.path.realpath(root))
    real = {name: Path(os.path.realpath(folder)) for name, folder in found.items()}
    owner: dict[Path, str] = {}
    for name, folder in real.items():
        if own.is_relative_to(folder):
            raise BadData(f"{shown(found[name])} is a link back to {shown(folder)}, which is no class; remove it.")
        other = owner.setdefault(folder, name)
        if other != name:
            raise BadData(
                f"{shown(other)} and {shown(name)} in {shown(root)} lead to one folder, so that its {what} are of two "
                "classes; remove one of them."
            )
    for name, folder in real.items():
        for above in folder.parents:
            if above in owner:
                raise BadData(
                    f"{shown(name)} in {shown(root)} leads into {shown(owner[above])}, so that its {what} are of two "
                    "classes; remove one of them."
                )
    return found


def _folders_of(folder: Path) -> dict[str, Path]:
    with reading(shown(folder)):
        paths = sorted(path for path in folder.iterdir() if not _is_of_tools(path.name))
        return {path.name: path for path in paths if _kind_of(path) == "folder"}


def _is_of_tools(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_TOOLS


def _kind_of(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # a link to nothing or to itself
        return "nothing"
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "device, pipe or socket"


class _Walk:
    """Finds files below folders and keeps count of what it passes over."""

    def __init__(self, root: Path, folders: Sequence[Path], endings: frozenset[str]) -> None:
        self.root, self.endings = root, endings
        self.read_anyway = [Path(os.path.realpath(folder)) for folder in (root, *folders)]
        self.entered: set[tuple[int, int]] = set()
        self.others: Counter[str] = Counter()
        self.links: list[str] = []

    def files_below(self, top: Path) -> list[Path]:
        """Wanted files, sorted by their path."""
        found, waiting = [], [top]
        while waiting:
            folder = waiting.pop()
            with reading(shown(folder)):
                state = folder.stat()
                paths = list(folder.iterdir())
            if (state.st_dev, state.st_ino) in self.entered:
                self.links.append(shown(folder.relative_to(self.root).as_posix()))
                continue
            self.entered.add((state.st_dev, state.st_ino))
            for path in paths:
                kind = "" if _is_of_tools(path.name) else _kind_of(path)
                if kind == "folder":
                    if path.is_symlink() and self._is_read_anyway(path):
                        self.links.append(shown(path.relative_to(self.root).as_posix()))
                    else:
                        waiting.append(path)
                elif kind and self._is_wanted(path, kind):
                    found.append(path)
        return sorted(found)

    def files_beside(self) -> list[Path]:
        """Wanted files in the root itself."""
        with reading(shown(self.root)):
            paths = [path for path in self.root.iterdir() if not path.name.startswith(".")]
        return [path for path in paths if path.suffix.lower() in self.endings and _kind_of(path) == "file"]

    def _is_wanted(self, path: Path, kind: str) -> bool:
        if kind == "file" and path.suffix.lower() in self.endings:
            return True
        if path.name.lower() not in _FILES_OF_TOOLS:
            ending = path.suffix.lower() or "without an ending"
            self.others[ending if kind == "file" else "broken link" if kind == "nothing" else kind] += 1
        return False

    def _is_read_anyway(self, link: Path) -> bool:
        target = Path(os.path.realpath(link))
        own = self.read_anyway[0]
        return own.is_relative_to(target) or any(
            target.is_relative_to(folder) or folder.is_relative_to(target) for folder in self.read_anyway[1:]
        )

    def other_kinds(self) -> str:
        """What else lies there, or nothing."""
        if not self.others:
            return ""
        kinds = [f"{count} {kind}" for kind, count in self.others.most_common()]
        return f"Left out below {shown(self.root)}, as files of other kinds: {listed(kinds)}."

    def notices(self, what: str) -> list[str]:
        """What was left out."""
        found = [self.other_kinds()] if self.others else []
        if self.links:
            found.append(
                f"Links below {shown(self.root)} that were left out, since they lead in a circle or to {what} that are "
                f"read anyway: {listed(sorted(self.links))}."
            )
        return found
