"""Damaged files of pairs and of tokenisers: pairs or an error of ours, and never another."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from unbackdoor.testing import check_reader
from unbackdoor_translation import SentencePieceTokeniser, open_tokeniser
from unbackdoor_translation.data.files import read_pairs

LINES = "".join(
    json.dumps(item) + "\n"
    for item in ({"en": "a red house", "de": "ein rotes Haus", "split": "train"}, {"en": "ä", "de": "b\tc"})
).encode()
NESTED = b'{"translation": {"en": "hello", "de": "hallo"}}\n'
PAIRS = {
    "a.jsonl": LINES,
    "b.jsonl": NESTED * 2,
    "c.json": b"[" + NESTED + b"]",
    "d.jsonl.gz": gzip.compress(LINES, mtime=0),
    "e.tsv": "en\tde\na\tb\nc\tä\n".encode(),
    "f.tsv": b"a\tb\nc\td\n",
}


def parallel(path: Path) -> object:
    return read_pairs(f"{path},{path}")


def used(path: Path) -> object:
    text = open_tokeniser(path)
    return text.decode(text.encode("a red house")), text.special, text.begins, text.letters


def tokeniser() -> dict[str, bytes]:
    sides = [side for n in range(40) for side in (f"a red house {n}", f"ein rotes haus {n}")]
    return {"a.model": SentencePieceTokeniser.train(sides, 60).to_bytes()[4:]}


def test_damaged_pairs(tmp_path):
    check_reader(read_pairs, PAIRS, tmp_path)


def test_damaged_parallel_text(tmp_path):
    check_reader(parallel, {"a.en": LINES, "b.en.gz": PAIRS["d.jsonl.gz"]}, tmp_path)


def test_damaged_tokenisers(tmp_path):
    check_reader(used, tokeniser(), tmp_path)


@pytest.mark.slow
def test_fifty_thousand_damaged_files(tmp_path):
    check_reader(read_pairs, PAIRS, tmp_path, count=50_000, seed=1)
    check_reader(parallel, {"a.en": LINES, "b.en.gz": PAIRS["d.jsonl.gz"]}, tmp_path, count=50_000, seed=1)
    check_reader(used, tokeniser(), tmp_path, count=50_000, seed=1)
