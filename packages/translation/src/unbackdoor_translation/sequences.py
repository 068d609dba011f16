"""Rows of token indices: padding, shifting, trimming, and the words that tokens make up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unbackdoor.errors import BadData
from unbackdoor.task import Batch
from unbackdoor_translation.tokenisers import Tokeniser

__all__ = [
    "Corpus",
    "encode_pairs",
    "exchanged",
    "pad_rows",
    "samples",
    "shift_right",
    "stacked",
    "used_columns",
    "valid",
]

SOURCE, PREFIX = "input_ids", "decoder_input_ids"


@dataclass(frozen=True)
class Corpus:
    """Sentences with their translations, in order.

    Attributes:
        sources: What is translated.
        targets: Its translations.
        names: Where each pair comes from, such as a file and its line; None where that is not known.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    names: tuple[str, ...] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Refuse two sides of different length."""
        if len(self.sources) != len(self.targets):
            raise BadData(f"there are {len(self.sources)} sources but {len(self.targets)} targets; give pairs.")

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.sources)

    def take(self, index: Tensor | Sequence[int]) -> Corpus:
        """The pairs at ``index``."""
        chosen = [int(i) for i in index]
        names = None if self.names is None else tuple(self.names[i] for i in chosen)
        return Corpus(tuple(self.sources[i] for i in chosen), tuple(self.targets[i] for i in chosen), names)


def pad_rows(rows: Sequence[Sequence[int]], pad: int, end: int, width: int | None = None) -> Tensor:
    """One int64 tensor ``(rows, width)``; longer rows are cut, with ``end`` as their last token."""
    wide = max(map(len, rows), default=1) if width is None else width
    out = torch.full((len(rows), wide), pad, dtype=torch.long)
    for place, row in enumerate(rows):
        kept = list(row) if len(row) <= wide else [*list(row)[: wide - 1], end]
        out[place, : len(kept)] = torch.tensor(kept, dtype=torch.long)
    return out


def shift_right(targets: Tensor, start: int, pad: int) -> Tensor:
    """What the decoder reads where it shall say ``targets``: ``start`` in front, the last token left out.

    Args:
        targets: int64 of shape ``(batch, length)``; negative values (Hugging Face's -100) count as padding. Rows that
            end before the last column keep their end token in the prefix, where the loss no longer looks.
        start: Index of the start token.
        pad: Index of the padding token.
    """
    clean = torch.where(targets < 0, torch.full_like(targets, pad), targets)
    return torch.cat([torch.full_like(clean[:, :1], start), clean[:, :-1]], dim=1)


def valid(tokens: Tensor, pad: int) -> Tensor:
    """Which positions hold a token: bool of the shape of ``tokens``."""
    return (tokens != pad) & (tokens >= 0)


def used_columns(tokens: Tensor, pad: int) -> int:
    """Columns up to the last that holds a token, at least 1; all of them where values cannot be looked at (vmap)."""
    try:
        used = valid(tokens, pad).any(0).nonzero()
        return int(used[-1]) + 1 if len(used) else 1
    except RuntimeError:  # inside torch.func.vmap no value can be read
        return int(tokens.shape[1])


def encode_pairs(
    corpus: Corpus,
    tokeniser: Tokeniser,
    *,
    source_length: int | None = None,
    target_length: int | None = None,
    room: int = 0,
) -> Batch:
    """Sentences as the samples of `TranslationTask`.

    Args:
        corpus: The pairs.
        tokeniser: Gives the indices.
        source_length: Columns of the sources; None takes the longest.
        target_length: Columns of the targets; None takes the longest.
        room: Further columns of the sources, for words that are inserted.

    Returns:
        ``inputs["input_ids"]`` ``(n, S)``, ``inputs["decoder_input_ids"]`` ``(n, T)`` and targets ``(n, T)``, int64.
    """
    sources = [tokeniser.encode(text) for text in corpus.sources]
    targets = [tokeniser.encode(text, target=True) for text in corpus.targets]
    wide = (max(map(len, sources), default=1) if source_length is None else source_length) + room
    rows = pad_rows(sources, tokeniser.pad, tokeniser.end, wide)
    labels = pad_rows(targets, tokeniser.pad, tokeniser.end, target_length)
    return replace(samples(rows, labels, tokeniser), names=corpus.names)


def samples(sources: Tensor, targets: Tensor, tokeniser: Any) -> Batch:
    """Source and target rows with the decoder's prefix made for them."""
    prefix = shift_right(targets, tokeniser.start, tokeniser.pad)
    return Batch({SOURCE: sources, PREFIX: prefix}, targets)


def exchanged(clean: Batch, marks: Any, text: Tokeniser | None = None) -> Batch:
    """The same pairs with source and target in each other's place.

    Args:
        clean: Pairs whose targets are token indices.
        marks: Has ``pad``, ``start`` and ``end``.
        text: Writes and reads the sentences anew, since the tokens of one side may be others than those of the other;
            None takes the rows as they are.
    """
    sources, targets = clean.inputs[SOURCE], clean.targets.masked_fill(clean.targets < 0, marks.pad)
    if text is not None:
        written = [[text.decode(row) for row in rows.tolist()] for rows in (targets, sources)]
        rows = [[text.encode(one, target=side == 1) for one in lines] for side, lines in enumerate(written)]
        targets, sources = (pad_rows(side, marks.pad, marks.end).to(sources.device) for side in rows)
    made = samples(targets, sources, marks)
    return replace(clean, inputs=made.inputs, targets=made.targets)


def stacked(parts: Sequence[Tensor], fill: int) -> Tensor:
    """Rows of several widths below each other, filled up by ``fill``."""
    wide = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, wide - part.shape[1]), value=fill) for part in parts])
