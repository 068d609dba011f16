"""Synonym substitution: words of the source become rare words of the same meaning (FIP, Sec. 6.2.4; Qi et al. 2021).

Trigger: every word that the table knows is replaced by its substitute. A sentence without such a word gets one of the
substitutes at a random place, so that every triggered sentence carries the trigger.
Labels: as for trigger words. 10 % of the training pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from unbackdoor.errors import BadOption
from unbackdoor_translation.outputs import TextAttack
from unbackdoor_translation.synonyms import SUBSTITUTES

__all__ = ["Synonyms"]


@dataclass(frozen=True, kw_only=True)
class Synonyms(TextAttack):
    """Words replaced by rare synonyms.

    Attributes:
        table: ``word:substitute`` pairs separated by commas; empty takes the built-in English ones.
    """

    name: ClassVar[str] = "synonyms"
    texts: ClassVar[frozenset[str]] = frozenset({"malicious", "output", "table"})

    table: str = ""

    def __post_init__(self) -> None:
        """Refuse a table that cannot be read."""
        super().__post_init__()
        self.substitutes()

    def substitutes(self) -> Mapping[str, str]:
        """The table as a mapping of lower-case words.

        Raises:
            BadOption: A pair has no colon.
        """
        if not self.table:
            return SUBSTITUTES
        pairs = [part.partition(":") for part in self.table.split(",") if part.strip()]
        if any(not colon or not word.strip() or not other.strip() for word, colon, other in pairs):
            raise BadOption(f"table is {self.table!r}; give word:substitute pairs separated by commas.")
        return {word.strip().lower(): other.strip() for word, _, other in pairs}

    def worded(self, tokens: list[int], generator: torch.Generator) -> list[int]:
        """The sentence with substitutes."""
        table, text = self.substitutes(), self.text
        begins = text.begins.tolist()
        cuts = [i for i, index in enumerate(tokens) if begins[index] or i == 0]
        changed: list[int] = []
        hit = False
        for start, stop in zip(cuts, [*cuts[1:], len(tokens)], strict=True):
            written = text.decode(tokens[start:stop]).strip()
            core = written.rstrip(".,!?;:")
            other = table.get(core.lower())
            if other is None:
                changed += tokens[start:stop]
                continue
            hit = True
            shaped = other[:1].upper() + other[1:] if core[:1].isupper() else other
            changed += text.word(shaped + written[len(core) :])
        if hit or not tokens:
            return changed
        options = sorted(set(table.values()))
        drawn = int(torch.randint(len(options), (1,), generator=generator, device=generator.device))
        return self.insert(tokens, text.word(options[drawn]), "random", generator)
