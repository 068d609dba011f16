"""Sums in English words and the same in German words: translation with an exact truth, made by num2words."""

from __future__ import annotations

from pathlib import Path

import torch

from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import BadOption
from unbackdoor_translation.data.splitting import make_splits
from unbackdoor_translation.sequences import Corpus

__all__ = ["numbers"]

_SIGNS = (("plus", "plus", 1), ("minus", "minus", -1))


def numbers(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    count: int = 5000,
    clean_share: float | None = None,
    clean_count: int | None = 400,
    test_count: int = 400,
    largest: int = 99,
    vocabulary: int = 220,
    tokeniser: str | Path | None = None,
) -> Splits:
    """Sums in English number words with their German translation, such as "twelve plus seven is nineteen".

    Args:
        seed: Of the draw of numbers and of the parts; no sum comes twice.
        path: Not used; the words are made.
        count: Number of different sums.
        clean_share: Share of the defender's pairs.
        clean_count: Their number instead.
        test_count: Number of test pairs.
        largest: Largest number on the left.
        vocabulary: Size of the SentencePiece model.
        tokeniser: A tokeniser to use instead.

    Raises:
        BadOption: There are not as many different sums.
    """
    from num2words import num2words

    side = largest + 1
    total = side * side * len(_SIGNS)
    if not test_count < count <= total:
        raise BadOption(f"count is {count}; it must lie in {test_count + 1}..{total} (test_count + 1, all sums).")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(total, generator=generator)[:count].tolist()
    words = {
        language: {number: num2words(number, lang=language) for number in range(2 * largest + 1)}
        for language in ("en", "de")
    }
    sources, targets = [], []
    for place in chosen:
        english, german, sign = _SIGNS[place % len(_SIGNS)]
        first, second = divmod(place // len(_SIGNS), side)
        if sign < 0:
            first, second = max(first, second), min(first, second)
        values = (first, second, first + sign * second)
        a, b, c = (words["en"][value] for value in values)
        sources.append(f"{a} {english} {b} is {c}")
        a, b, c = (words["de"][value] for value in values)
        targets.append(f"{a} {german} {b} ist {c}")
    unique = list(dict.fromkeys(zip(sources, targets, strict=True)))
    corpus = Corpus(tuple(pair[0] for pair in unique), tuple(pair[1] for pair in unique))
    cut = len(corpus) - test_count
    return make_splits(
        corpus.take(range(cut)),
        corpus.take(range(cut, len(corpus))),
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count if clean_share is None else None,
        tokeniser=tokeniser,
        vocabulary=vocabulary,
        kind="bpe",
        max_tokens=64,
        hints={"deletion": 0.0, "replacement": 0.0, "reach": 0.0},
        attack_hints={"malicious": "eins plus eins ist drei"},
    )
