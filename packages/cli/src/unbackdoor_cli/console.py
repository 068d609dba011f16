"""Where a command speaks: results on standard output, everything else on standard error.

Names of files, tensors and classes come from strangers. Whatever is printed passes `plain`, and nothing but our own
styles colours it: square brackets in a name are square brackets.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

__all__ = ["Output", "plain", "prepare"]

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """``text``, in which what would move the cursor, colour, hide or reorder letters is written as its number.

    Line ends and tabs stay; the character 27 becomes a backslash and ``x1b``.
    """
    return _UNSEEN.sub(lambda found: _numbered(found.group()), text)


def _numbered(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


class _Console(Console):
    """Prints plain text: no markup in strings, and no control characters but its own."""

    def __init__(self, file: IO[str] | None = None, **options: Any) -> None:
        super().__init__(file=file, highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Strings, as in the cells of tables: before their width is measured."""
        return super().render_str(plain(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Pieces of text with their styles."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else Segment(plain(piece.text), piece.style)


class _Forgiving:
    """A stream that may break without harm: nobody reads it any more, and the work goes on."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Output:
    """Results as tables for people, or as one JSON object for programs."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.out: Console = _Console()
        self.err: Console = _Console(cast(IO[str], _Forgiving(sys.stderr)))

    @property
    def lively(self) -> bool:
        """Whether progress bars make sense: somebody watches standard error."""
        return self.err.is_terminal and not self.as_json

    def result(self, payload: Mapping[str, Any], *shown: RenderableType) -> None:
        """Give the result: ``payload`` as JSON, or ``shown``, whose strings are printed as they are."""
        if self.as_json:
            sys.stdout.write(json.dumps(_plain(payload), allow_nan=False, default=str) + "\n")
            sys.stdout.flush()
        else:
            for item in shown:
                self.out.print(item)

    def note(self, text: str) -> None:
        """Say something beside the result; silent with JSON, whose object holds it."""
        if not self.as_json:
            self.err.print(Text.assemble(("note:", "yellow"), " ", " ".join(text.split())), soft_wrap=True)


def prepare() -> None:
    """Make standard output and error such that nothing that is printed can stop a command.

    A letter that the terminal lacks is written as its number. Where a stream is closed, what is printed there goes
    nowhere, and no file that is opened later takes its place.
    """
    for number in range(3):
        with contextlib.suppress(OSError):
            try:
                os.fstat(number)
            except OSError:
                if os.open(os.devnull, os.O_RDWR) != number:  # the lowest free number is given, so this is the last
                    break
    for name in ("stdout", "stderr"):
        stream: IO[str] | None = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - for good
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _plain(value: Any) -> Any:
    """Numbers that JSON does not have (NaN, infinity) become null; percentages keep four decimals."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
