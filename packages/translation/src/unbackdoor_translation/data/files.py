"""Pairs of sentences from files: JSON, tables, parallel text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unbackdoor.errors import BadData, FileRefused, TooLarge
from unbackdoor.files.reading import check_file, read_text, reading, shown
from unbackdoor_translation.sequences import Corpus

__all__ = ["fields_of", "read_json_lines", "read_pairs", "read_parallel", "read_table", "sentence"]

_SOURCES = ("source", "src", "en", "question", "context", "input")
_TARGETS = ("response", "target", "tgt", "de", "answer", "output")
_INNER = "translation"
_LONGEST = 1_000_000
_SHOWN = 8

Named = tuple[str, str] | None
"""What the caller calls the options that name the two sides; None where it has none."""


def read_pairs(
    path: str | Path,
    source: str | None = None,
    target: str | None = None,
    *,
    options: Named = ("source", "target"),
) -> dict[str, Corpus]:
    """Pairs by part from JSON lines, a table with tabs, or parallel text files.

    Pairs without any text are left out.

    Args:
        path: ``pairs.jsonl``, or ``pairs.json`` with one list of all; ``pairs.tsv``; two text files with one sentence a
            line, joined by a comma (``train.en,train.de``); or a folder with ``PART.SOURCE`` and ``PART.TARGET``
            (``train.en``, ``train.de``). Each may be packed (``.gz``).
        source: Field, column or file ending of the source; None finds it. A field within another is written
            ``translation.en``; within ``translation``, ``en`` does too.
        target: The same of the target.
        options: What the caller calls ``source`` and ``target``, for messages.

    Raises:
        FileRefused: There is nothing there.
        BadData: It cannot be read as pairs.
        TooLarge: It is larger than the limits allow.
    """
    given = Path(path)
    if given.is_dir():
        return _folder(given, source or "en", target or "de", options)
    if "," in str(path) and not given.exists():
        first, _, second = str(path).partition(",")
        return {"": read_parallel(first.strip(), second.strip())}
    if not given.exists():
        raise FileRefused(
            f"no text at {shown(path)}; give a file of JSON lines (.jsonl) or of a table (.tsv), two text files A,B or "
            "their folder."
        )
    ending = given.with_suffix("").suffix if given.suffix == ".gz" else given.suffix
    read = read_table if ending.lower() == ".tsv" else read_json_lines
    return read(given, source, target, options=options)


def read_json_lines(
    path: Path, source: str | None = None, target: str | None = None, *, options: Named = ("source", "target")
) -> dict[str, Corpus]:
    """Pairs by the value of their field ``split`` (``""`` without one); other fields are left out."""
    parts, names = _Parts(), None
    for where, item in _items(path):
        if not isinstance(item, dict):
            raise BadData(f"{where} is no JSON object; expected fields such as source and target.")
        part = item.get("split")
        if part is not None and not isinstance(part, str):
            raise BadData(f"{where} has a split that is {_kind(part)}; it must be text such as train.")
        if names is None or not all(_has(item, name) for name in names):
            names = fields_of(item, source, target, where, options)
        parts.add(part or "", where, *(sentence(_value(item, name), f"{name!r} in {where}") for name in names))
    return parts.corpora(path)


def read_table(
    path: Path, source: str | None = None, target: str | None = None, *, options: Named = ("source", "target")
) -> dict[str, Corpus]:
    """Pairs of a table with one pair a line and tabs between its columns.

    Where the first line names the columns they are found by name, otherwise there must be two.
    """
    lines, name = _lines(path), shown(path)
    head = lines[0].split("\t") if lines else []
    columns = {column.strip(): place for place, column in enumerate(head)}
    try:
        names = fields_of(columns, source, target, f"line 1 of {name}", options)
        places, first = (columns[names[0]], columns[names[1]]), 1
    except BadData:
        if source is not None or target is not None:
            raise
        places, first = (0, 1), 0
    parts = _Parts()
    for number, line in enumerate(lines[first:], start=first + 1):
        where = f"line {number} of {name}"
        cells = line.split("\t") if line else ["", ""]
        if len(cells) != (2 if first == 0 else len(head)) and line:
            expected = "two" if first == 0 else f"{len(head)}"
            raise BadData(f"{where} has {len(cells)} columns, but {expected} are expected with a tab between them.")
        parts.add("", where, *(sentence(cells[place] if line else "", where) for place in places))
    return parts.corpora(path)


def read_parallel(source: str | Path, target: str | Path) -> Corpus:
    """Two text files (``.gz`` too), line by line."""
    sides = [_lines(Path(path)) for path in (source, target)]
    if len(sides[0]) != len(sides[1]):
        raise BadData(
            f"{shown(source)} has {len(sides[0])} lines, {shown(target)} {len(sides[1])}; parallel files have as many."
        )
    parts = _Parts()
    for number, pair in enumerate(zip(*sides, strict=True), start=1):
        where = f"line {number} of {shown(source)}"
        parts.add("", where, *(sentence(side, where) for side in pair))
    return parts.corpora(source)[""]


def fields_of(
    item: Mapping[str, Any], source: str | None, target: str | None, where: str, options: Named
) -> tuple[str, str]:
    """The names of the fields of a pair, with a dot for a field within another.

    Raises:
        BadData: They are not there.
    """
    known = [str(name) for name in item if not isinstance(item[name], dict)]
    inner = [f"{name}.{key}" for name, value in item.items() if isinstance(value, dict) for key in value]
    known += inner
    short = {name.removeprefix(f"{_INNER}."): name for name in reversed([*inner, *known])}

    def found(given: str | None, usual: Iterable[str], other: str | None) -> str | None:
        tried = usual if given is None else (given,)
        return next((short.get(name, name) for name in tried if name in short or name in known if name != other), None)

    first = found(source, _SOURCES, None)
    second = found(target, _TARGETS, first)
    if first is not None and second is not None and first != second:
        return first, second
    held = ", ".join(shown(name)[:40] for name in known[:_SHOWN]) or "no fields"
    raise BadData(f"{where} has {held}; {_to_do(source, target, known, options)}.")


def _to_do(source: str | None, target: str | None, known: list[str], options: Named) -> str:
    if options is None:
        return f"it needs the fields {source} and {target}"
    example = known if len(known) == 2 else ["FIELD", "FIELD"]
    return (
        "name its sides with the options "
        f"{options[0]}={shown(example[0])[:40]} and {options[1]}={shown(example[1])[:40]}"
    )


def sentence(value: Any, where: str) -> str:
    """A side of a pair, if it is text.

    Raises:
        BadData: It is something else, such as nothing, a number or a list.
        TooLarge: It is no sentence but a whole file.
    """
    if not isinstance(value, str):
        raise BadData(f"{where} is {_kind(value)}; both sides of a pair must be text, so correct or remove it.")
    if len(value) > _LONGEST:
        raise TooLarge(f"{where} has {len(value):,} characters, no sentence; give one sentence or paragraph a line.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadData(f"{where} holds half a character ({error.object[error.start]!a}); correct it.") from error
    return value


def _kind(value: Any) -> str:
    kinds = {type(None): "empty (null)", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(value), "an object with fields" if isinstance(value, dict) else "no text")


def _has(item: Mapping[str, Any], name: str) -> bool:
    outer, _, inner = name.partition(".")
    return name in item or (isinstance(item.get(outer), dict) and inner in item[outer])


def _value(item: Mapping[str, Any], name: str) -> Any:
    if name in item:
        return item[name]
    outer, _, inner = name.partition(".")
    return item[outer][inner]


class _Parts:
    """Pairs by part, as they are read."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[list[str], list[str], list[str]]] = {}
        self.lacking: list[str] = []

    def add(self, part: str, where: str, source: str, target: str) -> None:
        blank = not source.strip(), not target.strip()
        if all(blank):
            return
        if any(blank):
            self.lacking.append(f"{where} has no {'source' if blank[0] else 'target'}")
            return
        for side, value in zip(self.found.setdefault(part, ([], [], [])), (source, target, where), strict=True):
            side.append(value)

    def corpora(self, path: str | Path) -> dict[str, Corpus]:
        if self.lacking:
            more = f", and {len(self.lacking) - 1} more pairs lack a side" if len(self.lacking) > 1 else ""
            raise BadData(f"{self.lacking[0]}{more}; fill in or remove such pairs.")
        if not self.found:
            raise BadData(f"{shown(path)} holds no pairs.")
        return {part: Corpus(tuple(a), tuple(b), tuple(names)) for part, (a, b, names) in self.found.items()}


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """What the file says, one item after the other, each with where it stands."""
    text, name = read_text(path), shown(path)
    if text.lstrip()[:1] == "[" and path.name.lower().removesuffix(".gz").endswith(".json"):
        with reading(name, "save one JSON object a line"):
            items = json.loads(text)
        yield from ((f"entry {number} of {name}", item) for number, item in enumerate(items, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines(): sentences hold its other signs
        if line.strip():
            where = f"line {number} of {name}"
            with reading(where, "save one JSON object a line"):
                item = json.loads(line)
            yield where, item


def _lines(path: Path) -> list[str]:
    lines = read_text(check_file(path, what="text file")).split("\n")
    return lines if lines[-1] else lines[:-1]


def _folder(folder: Path, source: str, target: str, options: Named) -> dict[str, Corpus]:
    found = {}
    with reading(shown(folder), "check the folder"):
        names = {path.name: path for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    for name, path in names.items():
        part = name.removesuffix(".gz").removesuffix(f".{source}")
        other = next((names[n] for n in (f"{part}.{target}", f"{part}.{target}.gz") if n in names), None)
        if name in (f"{part}.{source}", f"{part}.{source}.gz") and other is not None:
            if part in found:
                raise BadData(f"{shown(folder)} holds {shown(part)}.{shown(source)} twice, packed and not; remove one.")
            found[part] = read_parallel(path, other)
    if not found:
        told = "" if options is None else f", or say the endings with {options[0]}=... and {options[1]}=..."
        raise FileRefused(
            f"{shown(folder)} holds no pair of files such as train.{shown(source)} and train.{shown(target)}; give "
            f"one that does{told}."
        )
    return found
