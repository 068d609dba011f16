"""Changes of whole words on rows of tokens, without a loop over sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unbackdoor_translation.tokenisers import Tokeniser

__all__ = ["Lexicon", "delete_words", "replace_words", "shuffle_words", "word_numbers"]


def word_numbers(tokens: Tensor, begins: Tensor, special: Tensor) -> Tensor:
    """The word that each token belongs to: 0, 1, ... from the left; special tokens get -1.

    Args:
        tokens: int64 of shape ``(batch, length)``.
        begins: Which vocabulary entries begin a word, bool ``(vocabulary,)``.
        special: Which are no part of a word, bool ``(vocabulary,)``.
    """
    inside = ~special[tokens]
    starts = begins[tokens] & inside
    first = inside & (inside.cumsum(1) == 1)  # a sentence may begin without a mark
    numbers = (starts | first).cumsum(1) - 1
    return torch.where(inside, numbers, torch.full_like(numbers, -1))


def delete_words(
    tokens: Tensor, begins: Tensor, special: Tensor, pad: int, share: float, generator: torch.Generator
) -> Tensor:
    """Leave out each word with probability ``share``; a sentence keeps at least one. FIP, Sec. 6.2.4.

    Returns:
        Rows of the same shape, closed up to the left.
    """
    numbers = word_numbers(tokens, begins, special)
    draws = _draw(tokens, generator)
    spared = draws.masked_fill(numbers.amax(1, keepdim=True) < _columns(tokens), -1.0).argmax(1, keepdim=True)
    gone = (draws < share).scatter(1, spared, False)
    drop = gone.gather(1, numbers.clamp(min=0)) & (numbers >= 0)
    order = drop.to(torch.int8).argsort(dim=1, stable=True)
    return tokens.masked_fill(drop, pad).gather(1, order)


def shuffle_words(tokens: Tensor, begins: Tensor, special: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """Shuffle words locally: word ``i`` sorts by ``i + u`` with ``u`` uniform in ``[0, reach)``; below 1 nothing moves.

    The noise of Lample et al., "Unsupervised machine translation using monolingual corpora only" (ICLR 2018), Sec. 2.3.
    """
    numbers = word_numbers(tokens, begins, special)
    draws = reach * _draw(tokens, generator)
    keys = numbers + draws.gather(1, numbers.clamp(min=0))
    keys = torch.where(numbers >= 0, keys, torch.full_like(keys, float("inf")))
    order = keys.argsort(dim=1, stable=True)
    # special tokens in front of or between words would move behind them: such rows stay as they are
    inside = numbers >= 0
    plain = (inside.to(torch.int8).diff(dim=1) <= 0).all(1, keepdim=True)
    return torch.where(plain, tokens.gather(1, order), tokens)


@dataclass(frozen=True)
class Lexicon:
    """Synonyms that are one token each: ``table`` int64 ``(vocabulary, most)`` and ``counts`` ``(vocabulary,)``."""

    table: Tensor
    counts: Tensor

    @classmethod
    def of(cls, groups: Sequence[Sequence[str]], tokeniser: Tokeniser) -> Lexicon:
        """Groups of words of one meaning; words of several tokens are left out."""
        single: dict[int, list[int]] = {}
        for group in groups:
            tokens = [tokeniser.word(word) for word in group if _known(word, tokeniser)]
            members = sorted({token[0] for token in tokens if len(token) == 1})
            for member in members:
                single.setdefault(member, []).extend(other for other in members if other != member)
        most = max(map(len, single.values()), default=1) or 1
        table = torch.zeros(len(tokeniser), most, dtype=torch.long)
        counts = torch.zeros(len(tokeniser), dtype=torch.long)
        for index, others in single.items():
            table[index, : len(others)] = torch.tensor(others, dtype=torch.long)
            counts[index] = len(others)
        return cls(table, counts)

    def to(self, device: torch.device) -> Lexicon:
        """The same on ``device``."""
        return Lexicon(self.table.to(device), self.counts.to(device))


def replace_words(
    tokens: Tensor, begins: Tensor, special: Tensor, lexicon: Lexicon, share: float, generator: torch.Generator
) -> Tensor:
    """Replace each word that is one token by one of its synonyms with probability ``share``."""
    follows = torch.zeros_like(begins[tokens])
    follows[:, :-1] = ~(begins | special)[tokens[:, 1:]]  # the word goes on in the next token
    counts = lexicon.counts[tokens]
    able = (counts > 0) & ~follows & (_draw(tokens, generator) < share)
    which = (_draw(tokens, generator) * counts).long().clamp(max=lexicon.table.shape[1] - 1)
    return torch.where(able, lexicon.table[tokens, which], tokens)


def groups_from(table: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Groups of synonyms from a mapping of words to theirs."""
    return [[word, *others] for word, others in table.items()]


def _known(word: str, tokeniser: Tokeniser) -> bool:
    return any(not tokeniser.special[index] for index in tokeniser.encode(" " + word))


def _columns(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)


def _draw(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1), one for each position, from a CPU generator whatever the device."""
    return torch.rand(tokens.shape, generator=generator, device=generator.device).to(tokens.device)
