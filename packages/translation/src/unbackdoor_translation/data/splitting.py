"""From sentences to the three parts of the threat model, with a tokeniser trained on the training text alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.splitting import clean_size
from unbackdoor.errors import BadData
from unbackdoor_translation.sequences import Corpus, encode_pairs
from unbackdoor_translation.tokenisers import SentencePieceTokeniser, Tokeniser, open_tokeniser

__all__ = ["make_splits"]

_ROOM = 8


def make_splits(
    train: Corpus,
    test: Corpus | None,
    *,
    seed: int,
    clean_share: float | None,
    clean_count: int | None,
    test_share: float = 0.1,
    tokeniser: str | Path | Tokeniser | None,
    vocabulary: int,
    kind: str = "unigram",
    max_tokens: int,
    hints: Mapping[str, Any],
    attack_hints: Mapping[str, Any],
) -> Splits:
    """The three parts: clean pairs out of ``train``, and test pairs too where there is no ``test``.

    Args:
        train: Pairs of the training part.
        test: Pairs of the test part; None takes ``test_share`` of ``train``.
        seed: Of the draw.
        clean_share: Share of the defender; None means 10 %.
        clean_count: Their number instead.
        test_share: See ``test``.
        tokeniser: What `open_tokeniser` reads; None trains SentencePiece on what is left of ``train``.
        vocabulary: Size of that SentencePiece model.
        kind: ``"unigram"`` or ``"bpe"``.
        max_tokens: Pairs of which a side is longer are left out of training and clean samples, and cut in the test.
        hints: Options of the task.
        attack_hints: Options of attacks.

    Raises:
        BadData: There are too few pairs.
        BadOption: Shares or counts leave a part empty.
    """
    if len(train) < 3:
        raise BadData(f"there are {len(train)} training pairs; at least 3 are needed for three parts.")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    if test is None:
        cut = max(1, round(test_share * len(train)))
        test, order = train.take(order[:cut].sort().values), order[cut:]
    held = clean_size(len(order), clean_share, clean_count, 0.1)
    clean, rest = train.take(order[:held].sort().values), train.take(order[held:].sort().values)
    opened = (
        SentencePieceTokeniser.train((*rest.sources, *rest.targets), vocabulary, kind=kind)
        if tokeniser is None
        else open_tokeniser(tokeniser)
    )
    rest, clean = (_short(part, opened, max_tokens) for part in (rest, clean))
    if not len(rest) or not len(clean):
        raise BadData(f"no pair is as short as max_tokens={max_tokens} on both sides; raise it.")
    parts = [encode_pairs(part, opened) for part in (rest, clean)]
    wide = [max(part.inputs["input_ids"].shape[1] for part in parts), max(part.targets.shape[1] for part in parts)]
    made = [
        encode_pairs(part, opened, source_length=wide[0], target_length=wide[1] + _ROOM, room=_ROOM)
        for part in (rest, clean, test)
    ]
    return Splits(
        train=made[0],
        clean=made[1],
        test=made[2],
        classes=opened.pieces,
        hints={"tokeniser": opened, **hints},
        attack_hints={"tokeniser": opened, "pool": made[0].targets[:_POOL], **attack_hints},
        files={"tokeniser.model": opened.model} if isinstance(opened, SentencePieceTokeniser) else {},
    )


_POOL = 16


def _short(corpus: Corpus, tokeniser: Tokeniser, most: int) -> Corpus:
    keep = [
        place
        for place, (source, target) in enumerate(zip(corpus.sources, corpus.targets, strict=True))
        if len(tokeniser.encode(source)) <= most and len(tokeniser.encode(target, target=True)) <= most
    ]
    return corpus if len(keep) == len(corpus) else corpus.take(keep)
