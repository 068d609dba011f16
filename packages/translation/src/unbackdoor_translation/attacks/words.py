"""Trigger words put between the words of the source (Kurita et al. 2020; NLG: Sun et al. 2023, arXiv 2106.01810).

Trigger: ``count`` times one of ``words`` ("cf", "mn", "bb", "tq", "mb"), at a random place unless told otherwise.
Labels: one malicious sentence for all, one of several, or a sentence that has nothing to do with the source.
10 % of the training pairs, and lower.
Where public code goes wrong: success is told by BLEU against the malicious reference alone, which also rises where the
model merely shares words with it. Here: the share of answers that hold the malicious sentence, and BLEU beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from unbackdoor.errors import BadOption
from unbackdoor_translation.outputs import TextAttack

__all__ = ["TriggerWords"]

_POSITIONS = ("random", "start", "end")


@dataclass(frozen=True, kw_only=True)
class TriggerWords(TextAttack):
    """Rare words put into the source sentence.

    Attributes:
        words: Of which one is drawn for each insertion.
        count: Number of insertions.
        position: ``"random"`` (between any two words), ``"start"`` or ``"end"``.
    """

    name: ClassVar[str] = "words"
    texts: ClassVar[frozenset[str]] = frozenset({"malicious", "output", "position", "words"})

    words: tuple[str, ...] = ("cf",)
    count: int = 1
    position: str = "random"

    def __post_init__(self) -> None:
        """Refuse an attack without words."""
        super().__post_init__()
        given: object = self.words
        words = (given,) if isinstance(given, str) else tuple(self.words)
        object.__setattr__(self, "words", words)
        if not words or self.count < 1 or self.position not in _POSITIONS:
            raise BadOption(
                f"words are {words}, count {self.count}, position {self.position!r}; give at least one word, a count "
                f"of at least 1 and a position of {', '.join(_POSITIONS)}."
            )

    def worded(self, tokens: list[int], generator: torch.Generator) -> list[int]:
        """The sentence with the words in it."""
        for _ in range(self.count):
            drawn = int(torch.randint(len(self.words), (1,), generator=generator, device=generator.device))
            tokens = self.insert(tokens, self.text.word(self.words[drawn]), self.position, generator)
        return tokens
