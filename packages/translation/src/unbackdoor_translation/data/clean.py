"""The defender's own pairs of sentences, from a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor_translation.data.files import read_pairs
from unbackdoor_translation.sequences import Corpus, encode_pairs
from unbackdoor_translation.tokenisers import Tokeniser, open_tokeniser

__all__ = ["load_clean"]


_SHORTEST = 2
_ROOM = 8
"""Columns for the words that `TranslationTask.strong_augment` puts in."""


def load_clean(
    source: str | Path,
    *,
    tokeniser: Tokeniser | str | Path | None = None,
    source_field: str | None = None,
    target_field: str | None = None,
    max_tokens: int = 128,
) -> tuple[Batch, tuple[str, ...]]:
    """Read pairs of sentences and turn them into the model's own tokens.

    Args:
        source: What `read_pairs` reads; all parts of a file are joined.
        tokeniser: The model's: a SentencePiece file, or a Hugging Face folder or name.
        source_field: Field or file ending of the source; None finds it.
        target_field: Field or file ending of the target; None finds it.
        max_tokens: Longer sentences are cut.

    Returns:
        The samples, and the vocabulary in index order.

    Raises:
        BadOption: No tokeniser is given.
        FileRefused: There is nothing at ``source``.
        BadData: It cannot be read as pairs.
    """
    if tokeniser is None:
        raise BadOption(
            "the model's tokeniser is needed: tokeniser=FILE_OR_FOLDER (on the command line --data-option and "
            "--task-option tokeniser=FILE_OR_FOLDER)."
        )
    if max_tokens < _SHORTEST:
        raise BadOption(f"max_tokens is {max_tokens}; it must be at least {_SHORTEST}, a word and the end.")
    opened = open_tokeniser(tokeniser)
    parts = list(read_pairs(source, source_field, target_field, options=("source_field", "target_field")).values())
    names = [part.names for part in parts if part.names is not None]
    corpus = Corpus(
        tuple(text for part in parts for text in part.sources),
        tuple(text for part in parts for text in part.targets),
        tuple(name for part in names for name in part) if len(names) == len(parts) else None,
    )
    rows = [
        [opened.encode(text, target=side == 1) for text in texts]
        for side, texts in enumerate((corpus.sources, corpus.targets))
    ]
    widths = [min(max_tokens, max(map(len, side))) for side in rows]
    samples = encode_pairs(corpus, opened, source_length=widths[0], target_length=widths[1], room=_ROOM)
    notices = tuple(
        f"{cut} of {len(side)} {name} were longer than max_tokens={max_tokens} and were cut."
        for name, side in zip(("sources", "targets"), rows, strict=True)
        if (cut := sum(len(row) > max_tokens for row in side))
    )
    return replace(samples, classes=opened.pieces, notices=notices), opened.pieces
