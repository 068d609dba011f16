"""Files appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unbackdoor.errors import FileRefused

__all__ = ["write_atomically"]


def write_atomically(path: str | Path, write: Callable[[Path], Any], *, force: bool = False) -> None:
    """Let ``write`` fill a temporary file beside ``path`` and rename it, so that no half-written file is seen.

    Raises:
        FileRefused: ``path`` exists and ``force`` is off, or its folder cannot be made.
    """
    path = Path(path)
    if path.exists() and not force:
        raise FileRefused(f"{path} exists; choose another name or allow overwriting (force=True, --force).")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    except OSError as error:
        raise FileRefused(f"cannot write {path}: {error.strerror or error}.") from error
    os.close(handle)
    draft = Path(name)
    try:
        write(draft)
        umask = os.umask(0)
        os.umask(umask)
        draft.chmod(0o666 & ~umask)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
