"""Where a command speaks: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType

__all__ = ["Output"]


class Output:
    """Results as tables for people, or as one JSON object for programs."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.out = Console(highlight=False)
        self.err = Console(stderr=True, highlight=False)

    @property
    def lively(self) -> bool:
        """Whether progress bars make sense: somebody watches standard error."""
        return self.err.is_terminal and not self.as_json

    def result(self, payload: Mapping[str, Any], *shown: RenderableType) -> None:
        """Give the result: ``payload`` as JSON, or ``shown``."""
        if self.as_json:
            sys.stdout.write(json.dumps(_plain(payload), allow_nan=False, default=str) + "\n")
            sys.stdout.flush()
        else:
            for item in shown:
                self.out.print(item)

    def note(self, text: str) -> None:
        """Say something beside the result; silent with JSON, whose object holds it."""
        if not self.as_json:
            self.err.print(f"[yellow]note:[/] {_escaped(text)}", soft_wrap=True)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


def _plain(value: Any) -> Any:
    """Numbers that JSON does not have (NaN, infinity) become null; percentages keep four decimals."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
