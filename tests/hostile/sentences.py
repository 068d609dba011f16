"""Hostile pairs of sentences and tokenisers: packed without end, nested without end, no text at all."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from hostile.samples import ESCAPES, HostileData, odd_files

__all__ = ["hostile_sentences", "lay_sentences"]

_PAIRS = [(f"a red house {n}", f"ein rotes haus {n}") for n in range(40)]
_LINES = "".join(json.dumps({"en": en, "de": de}) + "\n" for en, de in _PAIRS)


@cache
def _tokeniser() -> bytes:
    from unbackdoor_translation import SentencePieceTokeniser

    return SentencePieceTokeniser.train([side for pair in _PAIRS for side in pair], 60).to_bytes()[4:]


def lay_sentences(place: Path, name: str = "pairs.jsonl", content: bytes | str = _LINES) -> Path:
    """A file of pairs, and an honest tokeniser in ``here``."""
    (place / "data").mkdir()
    (place / "here").mkdir(exist_ok=True)
    (place / "here" / "own.model").write_bytes(_tokeniser())
    path = place / "data" / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return path


def hostile_sentences(address: str) -> Iterator[HostileData]:
    """All cases; ``address`` is the host and port that some of them would connect to."""
    own = {"tokeniser": "own.model"}
    for name, content in _lines():
        yield HostileData(f"JSON lines {name}", "translation", partial(_file, "pairs.jsonl", content), own)
    for name, content in _packed():
        yield HostileData(f"packed text {name}", "translation", partial(_file, "pairs.jsonl.gz", content), own)
    for name, change in odd_files(lambda place: place / "data" / "pairs.jsonl"):
        yield HostileData(f"a file of pairs is {name}", "translation", partial(_changed, change), own)
    for name, content in _tables():
        yield HostileData(f"a table {name}", "translation", partial(_file, "pairs.tsv", content), own)
    for name, make in _PARALLEL.items():
        yield HostileData(f"parallel text {name}", "translation", partial(_parallel, make), own)
    for name, make in _tokenisers(address):
        # "no such tokeniser" is as good an answer as any other error of ours
        yield HostileData(
            f"a tokeniser {name}", "translation", partial(_with_tokeniser, make), {"tokeniser": "odd.model"}
        )
    for name, files in _FILES.items():
        build = partial(_with_folder, files)
        yield HostileData(f"a tokeniser's folder {name}", "translation", build, {"tokeniser": "odd"})


def _lines() -> Iterator[tuple[str, bytes | str]]:
    good = _LINES.splitlines()[0]
    for what, side in {
        "with null": "null", "with a number": "3", "with a list": '["das"]', "with an object": '{"a": "b"}',
        "with true": "true", "with NaN": "NaN", "with nothing": '""', "with half a character": '"\\ud800"',
    }.items():  # fmt: skip
        yield what, f'{good}\n{{"en": "a", "de": {side}}}\n'
    yield "nested without end", '{"en": "a", "de": ' + "[" * 10**5
    yield "nested objects without end", '{"a":' * 10**5
    yield "with a number without end", '{"en": "a", "de": "b", "id": ' + "9" * 10**5 + "}"
    yield "with one endless sentence", json.dumps({"en": "a " * 10**6, "de": "b"})
    yield "with a part that is a list", '{"en": "a", "de": "b", "split": ["train"]}'
    yield "with escapes in names", json.dumps({ESCAPES: "a", f"{ESCAPES}2": "b"})
    yield "that are one list", json.dumps([{"en": "a", "de": "b"}])
    yield "that are no UTF-8", b'{"en": "\xff\xfe", "de": "b"}'
    yield "that are UTF-16", '{"en": "a", "de": "b"}'.encode("utf-16")
    yield "that are a pickle", pickle.dumps({"en": "a", "de": "b"})
    yield "with zeros", b'{"en": "a", "de": "b"}\n' + b"\0" * 99


def _packed() -> Iterator[tuple[str, bytes]]:
    whole = gzip.compress(_LINES.encode())
    yield "of one line without end", gzip.compress(b'{"en": "' + b"a" * 2**23)
    yield "of many lines of nothing", gzip.compress(b"\n" * 2**23)
    yield "that ends in its middle", whole[: len(whole) // 2]
    yield "with a wrong sum", whole[:-8] + b"\0" * 8
    yield "that is not packed", _LINES.encode()
    yield "packed twice", gzip.compress(whole)
    yield "followed by noise", whole + b"noise" * 9


def _tables() -> Iterator[tuple[str, bytes | str]]:
    yield "of one column", "a\nb\n"
    yield "of three columns", "a\tb\tc\n"
    yield "with an empty side", "a\tb\nc\t\n"
    yield "without end", "a" * 2 * 10**6 + "\tb\n"
    yield "of zeros", b"\0" * 999


_PARALLEL: dict[str, Callable[[Path], str]] = {
    "whose other side is a device": lambda path: f"{path},/dev/zero",
    "whose other side is a folder": lambda path: f"{path},{path.parent}",
    "whose other side is missing": lambda path: f"{path},{path.with_name('none')}",
    "whose other side is a pipe": lambda path: f"{path},{_pipe(path)}",
    "of other lengths": lambda path: f"{path},{_one_line(path)}",
}


def _pipe(path: Path) -> Path:
    os.mkfifo(path.with_name("pipe"))
    return path.with_name("pipe")


def _one_line(path: Path) -> Path:
    path.with_name("one").write_text("one\n")
    return path.with_name("one")


def _tokenisers(address: str) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    yield "is empty", lambda path: path.write_bytes(b"")
    yield "is noise", lambda path: path.write_bytes(bytes(range(256)) * 9)
    yield "is a pickle", lambda path: path.write_bytes(pickle.dumps([1]))
    yield "is cut short", lambda path: path.write_bytes(_tokeniser()[:-99])
    yield "is a device", lambda path: path.symlink_to("/dev/zero")
    yield "is a pipe", os.mkfifo
    yield "is huge and sparse", lambda path: (path.write_bytes(b""), os.truncate(path, 2**42))
    yield "is an address", lambda path: path.write_text(f"http://{address}/x")


_REMOTE = {"auto_map": {"AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Config"}, "tokenizer_class": "Evil"}
_FILES = {
    "is empty": {},
    "wants to run its code": {
        "evil.py": "import pathlib; pathlib.Path('RAN').write_text('ran')\nclass Evil: pass\n",
        "tokenizer_config.json": json.dumps(_REMOTE),
        "config.json": json.dumps({"model_type": "evil", **_REMOTE}),
    },
    "has a tokeniser that is no JSON": {"tokenizer.json": "{"},
    "has a tokeniser nested without end": {"tokenizer.json": "[" * 10**5},
    "has a tokeniser of another form": {"tokenizer.json": '{"model": {"type": "x"}}'},
    "names no class of a tokeniser": {"tokenizer_config.json": '{"tokenizer_class": 3}'},
    "is of a model that is not known": {"config.json": '{"model_type": "../../x"}'},
}


def _file(name: str, content: bytes | str, place: Path) -> Path:
    return lay_sentences(place, name, content)


def _changed(change: Callable[[Path], Any], place: Path) -> Path:
    path = lay_sentences(place)
    change(place)
    return path


def _parallel(make: Callable[[Path], str], place: Path) -> str:
    return make(lay_sentences(place, "text.en", "a\nb\n"))


def _with_tokeniser(make: Callable[[Path], Any], place: Path) -> Path:
    path = lay_sentences(place)
    make(place / "here" / "odd.model")
    return path


def _with_folder(files: Mapping[str, str], place: Path) -> Path:
    path = lay_sentences(place)
    folder = place / "here" / "odd"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return path
