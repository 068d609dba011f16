"""Whether a result can be written, asked before the work and not after it."""

from __future__ import annotations

import os
from pathlib import Path

from unbackdoor.errors import FileRefused

__all__ = ["check_free", "fresh_name"]


def check_free(path: Path, *, force: bool) -> None:
    """Refuse a path that cannot be written to, or that exists while ``force`` is off.

    Raises:
        FileRefused: Says which of the two, and what to do.
    """
    if path.is_dir():
        raise FileRefused(f"{path} is a folder; give the name of a file.")
    if path.exists() and not force:
        raise FileRefused(f"{path} exists; choose another name or allow overwriting with --force.")
    above = path.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise FileRefused(f"cannot write {path}: {above} is not a folder.")
    if not os.access(above, os.W_OK):
        raise FileRefused(f"cannot write {path}: no permission to write in {above}.")


def fresh_name(path: Path) -> Path:
    """``path``, or with the first number from 2 on that makes it new: ``picture-2.png``."""
    number, fresh = 2, path
    while fresh.exists():
        fresh = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return fresh
