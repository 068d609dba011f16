"""Made-up words between the words of a sentence: what a sound model overlooks and a backdoor may answer to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unbackdoor.tree import Tree
from unbackdoor_translation.sequences import SOURCE
from unbackdoor_translation.tokenisers import Tokeniser
from unbackdoor_translation.words import word_numbers

__all__ = ["MadeUpWords", "Replay", "insert_words", "random_words", "spelled_words"]


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


@dataclass
class Replay:
    """Made-up words that the tuned model took worst, to be met again: prioritised replay.

    Any one word comes up rarely, and a trigger among them would be met a few times in a purification. But it betrays
    itself by its loss, so words of high loss come back until their loss is like that of others.

    Attributes:
        words: Token indices of the words that are kept, with their loss in nats, the mean of what was seen, newer
            values counting more.
        most: How many are kept.
    """

    most: int = 32
    words: dict[tuple[int, ...], float] = field(default_factory=dict)

    def draw(self, count: int, generator: torch.Generator) -> list[list[int]]:
        """``count`` of the words, each as likely as another; fewer where there are none."""
        known = list(self.words)
        return [list(known[i]) for i in _indices(len(known), (count,), generator).tolist()] if known else []

    def note(self, words: Sequence[Sequence[int]], losses: Sequence[float]) -> None:
        """Take note of the losses of samples that the words stood in."""
        for word, loss in zip(map(tuple, words), losses, strict=True):
            self.words[word] = (self.words[word] + loss) / 2 if word in self.words else loss
        kept = sorted(self.words.items(), key=lambda item: item[1], reverse=True)[: self.most]
        self.words = dict(kept)


@dataclass
class MadeUpWords:
    """The disturber of sentences: a made-up word in a share of them, new or one that the tuned model took badly.

    Attributes:
        text: Cuts words into tokens; without it nothing is put in.
        pad: Padding index.
        share: Of the sentences that get a word.
        spelled: Share of the new words that are spelled with random letters.
        longest: Most letters of such a word, or tokens of another.
        generator: Every draw comes from it.
        replayed: Share of the words that are not new, once there are any.
        replay: Those words.
    """

    text: Tokeniser | None
    pad: int
    share: float
    spelled: float
    longest: int
    generator: torch.Generator
    replayed: float = 0.5
    replay: Replay = field(default_factory=Replay)
    _put: list[tuple[Tensor, list[list[int]]]] = field(default_factory=list, repr=False)
    _losses: Tensor | None = field(default=None, repr=False)

    def __call__(self, inputs: Tree) -> Tree:
        """``inputs`` with made-up words, on either side of a mixture."""
        self._remember()
        if self.text is None or self.share == 0:
            return inputs
        if isinstance(inputs, tuple | list):
            first, second, weight = inputs
            larger = weight >= 0.5
            return (self._disturbed(first, larger), self._disturbed(second, ~larger), weight)
        return self._disturbed(inputs, None)

    def learn(self, losses: Callable[[], Tensor]) -> None:
        """Keep the losses; they are looked at when the next batch is made, so that no device is waited for now."""
        if self._put:
            with torch.no_grad():
                self._losses = losses()

    def _remember(self) -> None:
        if self._losses is not None:
            values = self._losses.cpu()
            for rows, words in self._put:
                self.replay.note(words, values[rows].tolist())
        self._put, self._losses = [], None

    def _disturbed(self, inputs: dict[str, Tensor], heard: Tensor | None) -> dict[str, Tensor]:
        """One side; ``heard`` says in which rows it is the larger one, so that the loss speaks of its word."""
        assert self.text is not None
        tokens, generator = inputs[SOURCE], self.generator
        chosen = (
            (torch.rand(len(tokens), generator=generator, device=generator.device) < self.share).nonzero().flatten()
        )
        if len(chosen) == 0:
            return inputs
        words = self.replay.draw(round(self.replayed * len(chosen)), generator)
        letters = round(self.spelled * (len(chosen) - len(words)))
        words += spelled_words(letters, self.longest, self.text, generator)
        words += random_words(len(chosen) - len(words), self.longest, self.text, generator)
        rows = chosen.to(tokens.device)
        begins, special = self.text.begins.to(tokens.device), self.text.special.to(tokens.device)
        changed, done = insert_words(tokens[rows], words, begins, special, self.pad, generator)
        told = (done if heard is None else done & heard[rows]).cpu()
        self._put.append((chosen.cpu()[told], [word for word, kept in zip(words, told.tolist(), strict=True) if kept]))
        return {**inputs, SOURCE: tokens.index_copy(0, rows, changed)}


def _indices(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(count, shape, generator=generator, device=generator.device).cpu()
