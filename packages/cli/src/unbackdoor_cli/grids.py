"""What the commands of the benchmark need beside it: words to options, a bar a cell, the table of the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.util import find_spec
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from unbackdoor.errors import BadOption, UnknownName
from unbackdoor.registry import method as method_of
from unbackdoor_cli.console import Output, plain
from unbackdoor_cli.options import typed

if TYPE_CHECKING:
    from unbackdoor_bench.runner import Beat
    from unbackdoor_bench.summary import Row

__all__ = ["bars", "exit_code", "needed", "of_words", "shown"]

_WIDE = 170
"""Columns of a terminal in which the whole table has room."""
_FIRST = ("method", "drop", "ASR", "worst", "LCR", "seconds")


def needed() -> None:
    """Refuse to begin where the benchmark is not installed.

    Raises:
        UnknownName: Says how to install it.
    """
    if find_spec("unbackdoor_bench") is None:
        raise UnknownName('the benchmark is not installed; pip install "unbackdoor[bench]"')


def of_words(
    words: Sequence[str] | None, methods: Sequence[str], flag: str, *, several: bool
) -> dict[str, tuple[Any, ...]]:
    """``METHOD.NAME=VALUE`` and ``NAME=VALUE`` in the types of the methods' fields.

    Args:
        words: As given.
        methods: That are compared.
        flag: For messages.
        several: Whether a value is a list, cut at commas.

    Raises:
        BadOption: A word is of another form, or no method has the option.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for word in words or ():
        key, equals, text = word.partition("=")
        owner, dot, name = key.strip().rpartition(".")
        name = name.replace("-", "_")
        if not equals or not name.isidentifier():
            raise BadOption(f"{flag} {word!r} is not of the form METHOD.NAME=VALUE or NAME=VALUE.")
        owners = [owner] if dot else [one for one in methods if name in {f.name for f in fields(method_of(one))}]
        if not owners:
            raise BadOption(f"{flag} {name!r}: none of {', '.join(methods)} has such an option.")
        key = f"{owner}.{name}" if dot else name
        if key in found:
            raise BadOption(f"{flag} {key} is given twice; give it once.")
        parts = [part.strip() for part in text.split(",")] if several else [text]
        found[key] = tuple(typed(method_of(owners[0]), {name: part}, flag)[name] for part in parts)
    return found


@contextmanager
def bars(output: Output, total: int) -> Iterator[Callable[[Beat], None]]:
    """A bar for each cell that runs and one for all, or a line for each cell that ended where nobody watches."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=output.err, transient=True, disable=not output.lively) as progress:
        whole = progress.add_task("cells", total=total)
        lines: dict[str, Any] = {}
        ended = 0

        def tell(beat: Beat) -> None:
            nonlocal ended
            name = plain(f"{beat.cell.victim}  {beat.cell.label}  seed {beat.cell.seed}")
            if beat.kind in ("started", "moved"):
                line = lines.get(beat.cell.identity)
                if line is None:
                    line = lines[beat.cell.identity] = progress.add_task(name, total=None)
                if beat.kind == "moved":
                    progress.update(line, completed=beat.step, total=beat.steps)
                return
            ended += 1
            progress.update(whole, completed=ended)
            line = lines.pop(beat.cell.identity, None)
            if line is not None:
                progress.remove_task(line)
            if not output.as_json:
                state = "kept from before" if beat.kind == "kept" else beat.status
                output.err.print(Text(f"[{ended}/{total}] {name}: {state}", style="dim"), soft_wrap=True)

        yield tell


def exit_code(statuses: Sequence[tuple[str, bool, bool]], *, anyway: bool) -> int:
    """What a comparison ends with: 1 where something broke, 2 or 3 where nothing that was asked for came out.

    Args:
        statuses: Of each cell that was asked for: its status, whether it was refused after the work, and whether a
            user would not have got its result without asking for it anyway.
        anyway: Whether such results were asked for.
    """
    if any(status == "failed" for status, _, _ in statuses):
        return 1
    bad = [status == "refused" or (overruled and not anyway) for status, _, overruled in statuses]
    if not statuses or not all(bad):
        return 0
    return 3 if any(worked or overruled for _, worked, overruled in statuses) else 2


def _problems(rows: Iterable[Row]) -> list[Text]:
    """Under the table of a victim: which cells have no result, or none to be used, and why."""
    return [
        Text.assemble((f"{row.label}, ", "red"), problem) for row in rows for problem in dict.fromkeys(row.problems)
    ]


def shown(rows: Sequence[Row], width: int) -> list[Any]:
    """The table of each victim: all columns where the terminal has room, else the first things to know."""
    from unbackdoor_bench.tables import columns, legend, values

    names = columns(rows)
    oracle = names[-1] == "oracle ASR"
    kept = [
        number
        for number, name in enumerate(names)
        if width >= _WIDE or name in _FIRST or number in (1, 2) or name.startswith("oracle")
    ]
    found: list[Any] = []
    for victim, group in groupby(rows, key=lambda row: row.victim):
        listed = list(group)
        table = Table(box=box.SIMPLE_HEAD)
        for place, number in enumerate(kept):
            table.add_column(names[number], justify="left" if place == 0 else "right", no_wrap=place > 0)
        for row in listed:
            cells = [Text(text) for text in values(row, oracle=oracle)]
            if not row.after:
                cells[1] = Text("see below", style="red")
            table.add_row(*(cells[number] for number in kept), end_section=row.label == "none")
        found += [Text(victim, style="bold"), table, *_problems(listed)]
    told = legend([names[number] for number in kept])
    hidden = [name for number, name in enumerate(names) if number not in kept]
    if hidden:
        told += f" In the files, and here with {_WIDE} columns: {', '.join(hidden)}."
    return [*found, Text(told, style="dim")]
