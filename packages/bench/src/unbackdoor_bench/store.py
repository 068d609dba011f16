"""The folder of a comparison: one JSON file a cell, which is there when the cell is done and not before."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unbackdoor.files.reading import read_json
from unbackdoor.files.writing import write_atomically
from unbackdoor_bench.cells import Cell

__all__ = ["DONE", "FAILED", "REFUSED", "Store"]

DONE, REFUSED, FAILED = "done", "refused", "failed"


class Store:
    """Results in ``folder/cells``, and in ``folder/progress`` how far cells that run elsewhere have come."""

    def __init__(self, folder: str | Path) -> None:
        """Nothing is written yet."""
        self.folder = Path(folder)

    def path(self, cell: Cell) -> Path:
        """The file of ``cell``."""
        return self.folder / "cells" / cell.file_name

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """What was written for ``cell``, under whatever name its victim had then; None if nothing was."""
        path = self.path(cell)
        if not path.is_file():
            path = next(iter((self.folder / "cells").glob(f"*-{cell.identity}.json")), path)
        if not path.is_file():
            return None
        return dict(read_json(path, what="result"))

    def finished(self, cell: Cell) -> bool:
        """Whether ``cell`` need not run again: it is done, or the method refused the victim on purpose."""
        content = self.read(cell)
        return content is not None and content["status"] in (DONE, REFUSED)

    def write(self, cell: Cell, content: Mapping[str, Any]) -> None:
        """Keep the result of ``cell``, all of it or nothing."""
        text = json.dumps({"depends_on": cell.depends_on(), **content}, indent=1, allow_nan=False, default=str) + "\n"
        path = self.path(cell)
        write_atomically(path, lambda draft: draft.write_text(text, encoding="utf-8"), force=True)
        self._beat_path(cell).unlink(missing_ok=True)

    def beat(self, cell: Cell, step: int, steps: int) -> None:
        """Say, to whoever waits for ``cell``, how far it has come."""
        text = f"{step} {steps}"
        write_atomically(self._beat_path(cell), lambda draft: draft.write_text(text, encoding="ascii"), force=True)

    def last_beat(self, cell: Cell) -> tuple[int, int] | None:
        """``(step, steps)`` of a cell that runs elsewhere; None if nothing is known."""
        try:
            step, steps = self._beat_path(cell).read_text(encoding="ascii").split()
        except (OSError, ValueError):
            return None
        return int(step), int(steps)

    def results(self, cells: Sequence[Cell]) -> list[tuple[Cell, dict[str, Any]]]:
        """Of those cells that have one."""
        pairs = [(cell, self.read(cell)) for cell in cells]
        return [(cell, content) for cell, content in pairs if content is not None]

    def _beat_path(self, cell: Cell) -> Path:
        return self.folder / "progress" / cell.identity
