"""What a hostile file of samples is, and what all kinds of them share: links, devices, pipes, odd names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ESCAPES", "HostileData", "odd_files"]

ESCAPES = "a\x1b[2J\x1b]0;owned\x07\u202eb"
"""A name that would clear a terminal, set its title and turn what follows around."""


@dataclass(frozen=True)
class HostileData:
    """One case.

    Attributes:
        name: What is hostile about it.
        task: Of the kit that shall read it.
        build: Makes it below a folder that holds ``data`` and ``outside``, and gives what to read.
        options: Of ``load_clean``.
        harmless: Whether it may be read all the same; otherwise it must be refused.
    """

    name: str
    task: str
    build: Callable[[Path], Path | str]
    options: Mapping[str, Any] = field(default_factory=dict)
    harmless: bool = False


def odd_files(path: Callable[[Path], Path]) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """What may lie in the place of an honest file that ``path`` finds: name, and a function that puts it there.

    A link to another regular file is none of it: people keep their samples so, and it is read as if it lay there.
    """
    for name, make in _ODD.items():
        yield name, lambda place, make=make: _put(path(place), make, place)


def _put(path: Path, make: Callable[[Path, Path], Any], place: Path) -> None:
    path.unlink(missing_ok=True)
    make(path, place)


_ODD: dict[str, Callable[[Path, Path], Any]] = {
    "a link to a device": lambda path, place: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path, place: path.symlink_to(path),
    "a link to nothing": lambda path, place: path.symlink_to(place / "nothing"),
    "a pipe": lambda path, place: os.mkfifo(path),
    "a folder": lambda path, place: path.mkdir(),
    "empty": lambda path, place: path.write_bytes(b""),
    "noise": lambda path, place: path.write_bytes(bytes(range(256)) * 9),
    "a page of HTML": lambda path, place: path.write_text("<!DOCTYPE html><html><script>alert(1)</script></html>"),
    "a pointer of Git LFS": lambda path, place: path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    ),
    "huge and sparse": lambda path, place: (path.write_bytes(b""), os.truncate(path, 2**42)),
}
