"""Made-up words between the words of a sentence: what a sound model overlooks and a backdoor may answer to."""

from __future__ import annotations

import torch
from torch import Tensor

from unbackdoor_translation.tokenisers import Tokeniser
from unbackdoor_translation.words import word_numbers

__all__ = ["insert_words", "made_up_words", "random_words", "spelled_words"]


def made_up_words(
    count: int, longest: int, tokeniser: Tokeniser, generator: torch.Generator, *, spelled: float
) -> list[list[int]]:
    """Words of random letters or of random tokens, in random order, as token indices.

    Args:
        count: How many.
        longest: Most letters of a word, or tokens.
        tokeniser: Cuts them.
        generator: Every draw comes from it.
        spelled: Share of those that are spelled with random letters.
    """
    letters = round(spelled * count)
    words = spelled_words(letters, longest, tokeniser, generator)
    words += random_words(count - letters, longest, tokeniser, generator)
    order = torch.randperm(count, generator=generator, device=generator.device)
    return [words[place] for place in order.tolist()]


def spelled_words(count: int, longest: int, tokeniser: Tokeniser, generator: torch.Generator) -> list[list[int]]:
    """Words of random letters, cut into tokens as the tokeniser cuts them; the number of letters is uniform.

    Letters are those of the vocabulary, in lower case, and a to z. A word that has no token is empty.

    Args:
        count: How many.
        longest: Most letters of a word.
        tokeniser: Cuts them.
        generator: Every draw comes from it.
    """
    letters = tokeniser.letters
    sizes = torch.randint(1, longest + 1, (count,), generator=generator, device=generator.device).tolist()
    drawn = torch.randint(len(letters), (count, longest), generator=generator, device=generator.device).tolist()
    words = ("".join(letters[i] for i in row[:size]) for row, size in zip(drawn, sizes, strict=True))
    return [[index for index in tokeniser.encode(" " + word) if not tokeniser.special[index]] for word in words]


def random_words(count: int, longest: int, tokeniser: Tokeniser, generator: torch.Generator) -> list[list[int]]:
    """Words of random tokens, one that begins a word, then ones that go on, each uniform over the vocabulary.

    So tokens that clean text never holds come up as often as the others. The number of tokens is uniform.
    """
    starting = (tokeniser.begins & ~tokeniser.special).nonzero().flatten()
    following = (~tokeniser.begins & ~tokeniser.special).nonzero().flatten()
    if len(starting) == 0:
        return [[] for _ in range(count)]
    longest = longest if len(following) else 1
    sizes = torch.randint(1, longest + 1, (count,), generator=generator, device=generator.device).tolist()
    heads = starting[_indices(len(starting), (count, 1), generator)]
    tails = following[_indices(len(following), (count, longest - 1), generator)] if longest > 1 else heads[:, :0]
    rows = torch.cat([heads, tails], dim=1).tolist()
    return [row[:size] for row, size in zip(rows, sizes, strict=True)]


def insert_words(
    tokens: Tensor,
    words: list[list[int]],
    begins: Tensor,
    special: Tensor,
    pad: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Put a word of its own into each row: in front of one of its words or behind the last, at a random place.

    A word of one token that any of the rows holds is a real word, which would change the meaning; it is not put in, nor
    is an empty one, nor one for which the row has no room.

    Args:
        tokens: int64 ``(batch, length)``.
        words: One for each row, as token indices.
        begins: Which vocabulary entries begin a word, bool ``(vocabulary,)``.
        special: Which are no part of a word, bool ``(vocabulary,)``.
        pad: Padding index.
        generator: Draws the places.

    Returns:
        Rows of the same shape, and where a word was put in, bool ``(batch,)``.
    """
    device, width = tokens.device, tokens.shape[1]
    used = torch.zeros_like(special).scatter(0, tokens.flatten(), True)
    there = tokens != pad
    sizes = torch.tensor([len(word) for word in words], device=device).unsqueeze(1)
    wide = max(1, *map(len, words)) if words else 1
    fresh = torch.tensor([word + [pad] * (wide - len(word)) for word in words], dtype=torch.long, device=device)
    real = (sizes == 1) & used[fresh[:, :1]]
    sizes = torch.where(real | (there.sum(1, keepdim=True) + sizes > width), 0, sizes)
    numbers = word_numbers(tokens, begins, special)
    before = torch.nn.functional.pad(numbers, (1, 0), value=-1)[:, :-1]
    gaps = there & (numbers != before)  # a word begins here, or the end token comes after the last
    draws = torch.rand(tokens.shape, generator=generator, device=generator.device).to(device)
    place = (draws + 1).mul(gaps).argmax(1, keepdim=True)
    sizes = torch.where(gaps.any(1, keepdim=True), sizes, 0)
    columns = torch.arange(width, device=device).unsqueeze(0)
    behind = tokens.gather(1, (columns - sizes).clamp(min=0))
    inside = fresh.gather(1, (columns - place).clamp(0, wide - 1))
    changed = torch.where(columns < place, tokens, torch.where(columns < place + sizes, inside, behind))
    return changed, sizes.squeeze(1) > 0


def _indices(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(count, shape, generator=generator, device=generator.device).cpu()
