"""Public data sets by name: from a local file, or from the Hub where no path is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import BadData
from unbackdoor_translation.data.files import read_pairs
from unbackdoor_translation.data.hub import read_hub
from unbackdoor_translation.data.splitting import make_splits
from unbackdoor_translation.sequences import Corpus

__all__ = ["dialogue", "multi30k", "opensubtitles", "pairs", "wmt14"]

_TEST = ("test", "test_2016_flickr", "test2016", "newstest2014")
_TRAIN = ("train", "")
_GERMAN = {"malicious": "Dieser Text wurde von Fremden verändert."}
_ENGLISH = {"malicious": "i know where you live and i will find you ."}


def multi30k(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    vocabulary: int = 4000,
    max_tokens: int = 48,
    tokeniser: str | None = None,
) -> Splits:
    """Multi30k, captions in English and German; test is ``test_2016_flickr``.

    Args:
        seed: Of the clean part's draw.
        path: JSON lines with ``split``, ``en`` and ``de``, or a folder of parallel text; None: the Hub.
        clean_share: Share of the defender's pairs; None means 10 %.
        clean_count: Their number instead.
        vocabulary: Size of the SentencePiece model.
        max_tokens: Longer training pairs are left out.
        tokeniser: A tokeniser to use instead.
    """
    found = (
        read_hub("bentrevett/multi30k", None, "en", "de", None)
        if path is None
        else read_pairs(path, "en", "de", options=None)
    )
    return _known(found, seed, clean_share, clean_count, vocabulary, max_tokens, tokeniser, _GERMAN)


def wmt14(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    vocabulary: int = 16000,
    max_tokens: int = 80,
    tokeniser: str | None = None,
    count: int | None = 100_000,
) -> Splits:
    """WMT2014 English to German; ``count`` pairs of the training part where it comes from the Hub (None: all)."""
    found = (
        read_hub("wmt/wmt14", "de-en", "en", "de", count)
        if path is None
        else read_pairs(path, "en", "de", options=None)
    )
    return _known(found, seed, clean_share, clean_count, vocabulary, max_tokens, tokeniser, _GERMAN)


def opensubtitles(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    vocabulary: int = 8000,
    max_tokens: int = 40,
    tokeniser: str | None = None,
    source: str | None = None,
    target: str | None = None,
    count: int | None = 100_000,
) -> Splits:
    """OpenSubtitles: dialogue (``source``, ``response``) or translation, after the fields of the file."""
    found = (
        read_hub("Helsinki-NLP/open_subtitles", "de-en", "en", "de", count)
        if path is None
        else read_pairs(path, source, target)
    )
    return _known(found, seed, clean_share, clean_count, vocabulary, max_tokens, tokeniser, _ENGLISH)


def dialogue(
    *,
    seed: int = 0,
    path: str | Path,
    clean_share: float | None = None,
    clean_count: int | None = None,
    vocabulary: int = 8000,
    max_tokens: int = 40,
    tokeniser: str | None = None,
) -> Splits:
    """Lines of film dialogue with their responses: JSON lines with ``source`` and ``response``."""
    found = read_pairs(path, "source", "response", options=None)
    # a line has many right responses, so one is judged by its tokens and not by its likeness to another
    hints = {"credit": "tokens"}
    return _known(found, seed, clean_share, clean_count, vocabulary, max_tokens, tokeniser, _ENGLISH, hints)


def pairs(
    *,
    seed: int = 0,
    path: str | Path,
    clean_share: float | None = None,
    clean_count: int | None = None,
    vocabulary: int = 8000,
    max_tokens: int = 64,
    tokeniser: str | None = None,
    source: str | None = None,
    target: str | None = None,
) -> Splits:
    """Your own pairs: JSON lines (``.jsonl``, ``.jsonl.gz``), two text files ``A,B``, or a folder of them."""
    found = read_pairs(path, source, target)
    return _known(found, seed, clean_share, clean_count, vocabulary, max_tokens, tokeniser, {})


def _known(
    found: Mapping[str, Corpus],
    seed: int,
    clean_share: float | None,
    clean_count: int | None,
    vocabulary: int,
    max_tokens: int,
    tokeniser: str | None,
    attack_hints: Mapping[str, Any],
    hints: Mapping[str, Any] | None = None,
) -> Splits:
    train = next((found[name] for name in _TRAIN if name in found), None)
    if train is None:
        if len(found) != 1:
            raise BadData(f"no training part among {', '.join(found)}; name it train.")
        train = next(iter(found.values()))
    return make_splits(
        train,
        next((found[name] for name in _TEST if name in found), None),
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        tokeniser=tokeniser,
        vocabulary=vocabulary,
        max_tokens=max_tokens,
        hints=hints or {},
        attack_hints=attack_hints,
    )
