"""Made-up words between the words of a sentence: what a sound model overlooks and a backdoor may answer to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from unbackdoor.task import Losses
from unbackdoor.tree import Tree
from unbackdoor_translation.sequences import PREFIX, SOURCE
from unbackdoor_translation.tokenisers import Tokeniser
from unbackdoor_translation.words import word_numbers

__all__ = ["MadeUpWords", "insert_words", "random_words", "spelled_words"]

_LISTED = 5
"""Words that a report names."""
_PASSES = 32
"""Forward passes of new words in a search, at most: in small batches fewer words are tried."""


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
class MadeUpWords:
    """The disturber of sentences: a made-up word in a share of them, new or one that the tuned model takes badly.

    Any one word comes up rarely among new ones, and a trigger would be met a few times in a purification. But it
    betrays itself by the loss that it brings to whatever sentence it stands in. So now and then many words are tried in
    forward passes, and those that cost most are put in again and again, the dearer the more often. What cost much once
    is remembered and put in as well after the model has learned to overlook it, since it would turn back.

    Attributes:
        text: Cuts words into tokens; without it nothing is put in.
        pad: Padding index.
        share: Of the sentences that get a word.
        spelled: Share of the new words that are spelled with random letters.
        longest: Most letters of such a word, or tokens of another.
        generator: Every draw comes from it.
        judged: Tokens of the answer that a search looks at, from the first on.
        tried: Words that a search tries, in at most 32 forward passes.
        looks: Searches before anything is tuned.
        every: Batches from one search to the next.
        varied: Share of them that are words found before with one token less, more or exchanged.
        sought: Share of the words put in that were found by searches, half of them by the last one.
        most: How many words are kept of the last search, and of all together.
        fading: What is left of a remembered cost from one search to the next.
        found: Token indices of the words that cost most in the last search, with what they cost, in nats.
        remembered: The same of all searches, with their highest costs, faded.
    """

    text: Tokeniser | None
    pad: int
    share: float
    spelled: float
    longest: int
    generator: torch.Generator
    judged: int = 3
    tried: int = 2000
    looks: int = 10
    every: int = 50
    varied: float = 0.4
    sought: float = 0.5
    most: int = 32
    fading: float = 0.98
    found: dict[tuple[int, ...], float] = field(default_factory=dict)
    remembered: dict[tuple[int, ...], float] = field(default_factory=dict)
    _met: int = field(default=0, repr=False)
    _worst: dict[tuple[int, ...], float] = field(default_factory=dict, repr=False)

    def look(self, samples: Iterator[tuple[Tree, Losses]]) -> None:
        """Search the given model, whose trigger is whole yet."""
        for inputs, losses in islice(samples, self.looks if self._searches else 0):
            self._search(inputs, losses)

    def __call__(self, inputs: Tree, losses: Losses) -> Tree:
        """``inputs`` with made-up words, on either side of a mixture."""
        if self.text is None or self.share == 0:
            return inputs
        if self._searches and self._met % self.every == 0:
            self._search(inputs, losses)
        self._met += 1
        return self.put(inputs)

    def put(self, inputs: Tree) -> Tree:
        """The same without a search."""
        if self.text is None or self.share == 0:
            return inputs
        if isinstance(inputs, tuple | list):
            first, second, weight = inputs
            return (self.put(first), self.put(second), weight)
        tokens, generator = inputs[SOURCE], self.generator
        draws = torch.rand(len(tokens), generator=generator, device=generator.device)
        chosen = (draws < self.share).nonzero().flatten()
        if len(chosen) == 0:
            return inputs
        words = self._again(round(self.sought * len(chosen)))
        words += self._new(len(chosen) - len(words))
        rows = chosen.to(tokens.device)
        return {**inputs, SOURCE: tokens.index_copy(0, rows, self._inserted(tokens[rows], words)[0])}

    @property
    def _searches(self) -> bool:
        return self.text is not None and self.share > 0 and self.tried > 0

    def left(self, inputs: Tree, losses: Losses) -> None:
        """Not asked: words are kept by what they cost in several sentences of one search."""

    def findings(self) -> list[str]:
        """The words that cost most, when they did: the nearest thing to a trigger that clean sentences can tell of."""
        worst = sorted(self._worst.items(), key=lambda item: item[1], reverse=True)[:_LISTED]
        if self.text is None or not worst or worst[0][1] <= 0:
            return []
        listed = ", ".join(repr(self.text.decode([*word, self.text.end]).strip()) for word, _ in worst)
        said = (
            "of the made-up words that were put into clean sentences while tuning, these changed the answers most: "
            f"{listed}. What several of them have in common may be a trigger; a model without a backdoor has such "
            "words too."
        )
        return [said]

    def _search(self, inputs: Tree, losses: Losses) -> None:
        """Try new words, each in one sentence, and the dearest again in others, together with those known."""
        inputs = self._beginning(inputs)
        plain = losses(inputs)
        tried = min(self.tried, _PASSES * len(plain))
        varied = round(self.varied * tried) if self.found or self.remembered else 0
        words = (self._variations(varied) if varied else []) + self._new(tried - varied)
        costs = self._costs(inputs, words, plain, losses)
        best = sorted(range(len(words)), key=lambda i: costs[i], reverse=True)[: 2 * self.most]
        again = list(dict.fromkeys([*map(tuple, (words[i] for i in best)), *self.found, *self.remembered]))
        seconds = [self._costs(inputs, again, plain, losses, turn) for turn in (1, 2)]
        # a word that costs much in one sentence and little in the next was in a sentence that it changed
        now = {word: min(one[place] for one in seconds) for place, word in enumerate(again)}
        before = self.remembered
        self.found = _dearest(now, self.most)
        self.remembered = _dearest(
            {word: max(cost, self.fading * before.get(word, 0.0)) for word, cost in now.items()}, self.most
        )
        highest = {word: max(cost, self._worst.get(word, 0.0)) for word, cost in (self._worst | now).items()}
        self._worst = _dearest(highest, _LISTED)

    def _again(self, count: int) -> list[list[int]]:
        """Words found before, half of them cut short: half of the last search, by cost, half remembered ones."""
        words: list[list[int]] = []
        halves = ((self.found, count - count // 2), (dict.fromkeys(self.remembered, 1.0), count // 2))
        for weights, share in halves:
            if weights and share:
                known = list(weights)
                chances = torch.tensor(list(weights.values()), device=self.generator.device)
                drawn = chances.multinomial(share, replacement=True, generator=self.generator)
                words += [list(known[i]) for i in drawn.tolist()]
        # what costs most is often the trigger with something behind it: the model learns the whole and not its front
        cuts = _indices(1 << 20, (len(words), 2), self.generator).tolist()
        return [
            word[: 1 + place % len(word)] if coin % 2 else word for word, (coin, place) in zip(words, cuts, strict=True)
        ]

    def _costs(
        self, inputs: Tree, words: Sequence[Sequence[int]], plain: Tensor, losses: Losses, turn: int = 0
    ) -> list[float]:
        """What each word costs more than none, in the sentence ``turn`` places on from its own in the batch."""
        costs: list[Tensor] = []
        count = len(plain)
        for start in range(0, len(words), count):
            part = [list(word) for word in words[start : start + count]]
            filled = part + [[] for _ in range(count - len(part))]
            filled = filled[-turn:] + filled[:-turn] if turn else filled
            put = self._everywhere(inputs, filled)
            costs.append((losses(put) - plain).roll(-turn)[: len(part)])
        return torch.cat(costs).tolist()

    def _beginning(self, inputs: Tree) -> Tree:
        """The same sources with the first tokens of the true prefix.

        A malicious answer is another from its first words on; what comes later is taught the right way by the prefix,
        and looks less and less wrong.
        """
        if isinstance(inputs, tuple | list):
            first, second, weight = inputs
            return (self._beginning(first), self._beginning(second), weight)
        return {**inputs, PREFIX: inputs[PREFIX][:, : self.judged]}

    def _everywhere(self, inputs: Tree, words: list[list[int]]) -> Tree:
        """Each sentence with its word; in a mixture the one of the larger share."""
        if not isinstance(inputs, tuple | list):
            return {**inputs, SOURCE: self._inserted(inputs[SOURCE], words)[0]}
        first, second, weight = inputs
        larger = (weight >= 0.5).unsqueeze(1)
        sides = [self._inserted(side[SOURCE], words)[0] for side in (first, second)]
        return (
            {**first, SOURCE: torch.where(larger, sides[0], first[SOURCE])},
            {**second, SOURCE: torch.where(larger, second[SOURCE], sides[1])},
            weight,
        )

    def _new(self, count: int) -> list[list[int]]:
        assert self.text is not None
        letters = round(self.spelled * count)
        spelled = spelled_words(letters, self.longest, self.text, self.generator)
        return spelled + random_words(count - letters, self.longest, self.text, self.generator)

    def _variations(self, count: int) -> list[list[int]]:
        known, others = list(self.found | self.remembered), self._new(count)
        picks = _indices(len(known), (count,), self.generator).tolist()
        draws = _indices(1 << 20, (count, 2), self.generator).tolist()
        words = []
        for pick, other, (kind, place) in zip(picks, others, draws, strict=True):
            word = list(known[pick])
            i = place % len(word)
            fresh = other[:1] if i == 0 else other[1:2]  # what begins a word, or what goes on in it
            if kind % 3 == 0 and i > 0:
                word = word[:i] + word[i + 1 :]
            elif kind % 3 == 1:
                word = word[:i] + fresh + word[i + 1 :] if fresh else word
            elif len(word) < self.longest:
                word = [*word, *other[1:2]]
            words.append(word)
        return words

    def _inserted(self, tokens: Tensor, words: list[list[int]]) -> tuple[Tensor, Tensor]:
        assert self.text is not None
        begins, special = self.text.begins.to(tokens.device), self.text.special.to(tokens.device)
        return insert_words(tokens, words, begins, special, self.pad, self.generator)


def _dearest(costs: dict[tuple[int, ...], float], most: int) -> dict[tuple[int, ...], float]:
    """Those of highest cost, the dearest first; none that costs nothing, nor the empty word."""
    kept = sorted(costs.items(), key=lambda item: item[1], reverse=True)[:most]
    return {word: cost for word, cost in kept if word and 0 < cost < float("inf")}


def _indices(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(count, shape, generator=generator, device=generator.device).cpu()
