"""Pairs of sentences from files: JSON lines, parallel text, the Hub."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unbackdoor.errors import BadData, FileRefused
from unbackdoor_translation.sequences import Corpus

__all__ = ["read_hub", "read_json_lines", "read_pairs", "read_parallel"]

_SOURCES = ("source", "src", "en", "question", "context", "input")
_TARGETS = ("response", "target", "tgt", "de", "answer", "output")


def read_pairs(path: str | Path, source: str | None = None, target: str | None = None) -> dict[str, Corpus]:
    """Pairs by part from a JSON-lines file, or from parallel text files.

    Args:
        path: ``pairs.jsonl`` or ``pairs.jsonl.gz``; or two text files with one sentence a line, joined by a comma
            (``train.en,train.de``); or a folder with ``PART.SOURCE`` and ``PART.TARGET`` (``train.en``, ``train.de``).
        source: Field or file ending of the source; None finds it.
        target: Field or file ending of the target; None finds it.

    Raises:
        FileRefused: There is nothing there.
        BadData: It cannot be read as pairs.
    """
    given = Path(path)
    if given.is_dir():
        return _folder(given, source or "en", target or "de")
    if "," in str(path) and not given.exists():
        first, _, second = str(path).partition(",")
        return {"": read_parallel(first.strip(), second.strip())}
    if not given.is_file():
        raise FileRefused(f"no text at {path}; give a .jsonl or .jsonl.gz file, two text files A,B or their folder.")
    return read_json_lines(given, source, target)


def read_json_lines(path: Path, source: str | None = None, target: str | None = None) -> dict[str, Corpus]:
    """Pairs by the value of their field ``split`` (``""`` without one); other fields are left out."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            raise BadData(f"line {number} of {path} is no JSON ({error}).") from error
        if not isinstance(item, dict):
            raise BadData(f"line {number} of {path} is no JSON object; expected fields such as source and target.")
        fields = _fields(item, source, target, f"line {number} of {path}")
        sides = found.setdefault(str(item.get("split", "")), ([], []))
        for side, field in zip(sides, fields, strict=True):
            side.append(str(item[field]))
    if not found:
        raise BadData(f"{path} holds no pairs.")
    return {part: Corpus(tuple(a), tuple(b)) for part, (a, b) in found.items()}


def read_parallel(source: str | Path, target: str | Path) -> Corpus:
    """Two text files (``.gz`` too), line by line."""
    sides = []
    for path in (Path(source), Path(target)):
        if not path.is_file():
            raise FileRefused(f"no text file at {path}.")
        sides.append(tuple(line.rstrip("\r\n") for line in _lines(path)))
    if len(sides[0]) != len(sides[1]):
        raise BadData(f"{source} has {len(sides[0])} lines, {target} {len(sides[1])}; parallel files have as many.")
    return Corpus(sides[0], sides[1])


def read_hub(name: str, config: str | None, source: str, target: str, most: int | None) -> dict[str, Corpus]:
    """Pairs of a data set of the Hugging Face Hub by part; at most ``most`` of each.

    Fields are ``source`` and ``target`` themselves, or those of an inner ``translation``.

    Raises:
        FileRefused: It cannot be had: no network, no such name, or ``datasets`` is not installed.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise FileRefused('the Hub needs: pip install "unbackdoor-translation[hub]"; or give a local path.') from error
    try:
        parts = load_dataset(name, config)
    except (OSError, ValueError, RuntimeError) as error:
        raise FileRefused(f"{name} cannot be had from the Hub ({error}); give a local path.") from error
    return {part: _of_rows(rows, source, target, most, name) for part, rows in parts.items()}


def _of_rows(rows: Any, source: str, target: str, most: int | None, name: str) -> Corpus:
    sides: tuple[list[str], list[str]] = ([], [])
    for place, row in enumerate(rows):
        if most is not None and place >= most:
            break
        item = row.get("translation", row)
        for side, field in zip(sides, _fields(item, source, target, f"row {place} of {name}"), strict=True):
            side.append(str(item[field]))
    return Corpus(tuple(sides[0]), tuple(sides[1]))


def _folder(folder: Path, source: str, target: str) -> dict[str, Corpus]:
    found = {}
    for path in sorted([*folder.glob(f"*.{source}"), *folder.glob(f"*.{source}.gz")]):
        part = path.name.removesuffix(".gz").removesuffix(f".{source}")
        other = next((p for p in (folder / f"{part}.{target}", folder / f"{part}.{target}.gz") if p.is_file()), None)
        if other is not None:
            found[part] = read_parallel(path, other)
    if not found:
        raise FileRefused(f"{folder} holds no pair of files such as train.{source} and train.{target}.")
    return found


def _fields(item: Mapping[str, Any], source: str | None, target: str | None, where: str) -> tuple[str, str]:
    first = source or next((name for name in _SOURCES if name in item), None)
    second = target or next((name for name in _TARGETS if name in item and name != first), None)
    if first not in item or second not in item:
        raise BadData(
            f"{where} has the fields {', '.join(map(str, item))}; name its sides with the options source and target."
        )
    return str(first), str(second)


def _lines(path: Path) -> Iterator[str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            yield from lines
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise BadData(f"{path} is no UTF-8 text ({error}).") from error
