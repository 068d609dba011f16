"""Strong augmentation of sentences: changes of several families that leave the right answer as it is.

They are the field's usual ones (EDA, Wei and Zou 2019, arXiv 1901.11196; Lample et al. 2018, arXiv 1711.00043): a word
put in, words left out, neighbours swapped, synonyms. The word that is put in is made up, so that it means nothing. Each
sentence gets one change, drawn evenly. Families have names, so that a measurement can leave out whatever resembles the
trigger that it measures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from unbackdoor.errors import BadOption
from unbackdoor_translation.made_up import insert_words, made_up_words
from unbackdoor_translation.tokenisers import Tokeniser
from unbackdoor_translation.words import Lexicon, delete_words, replace_words, shuffle_words

__all__ = ["FAMILIES", "chosen_families", "strong"]

FAMILIES = ("insertion", "deletion", "order", "synonym")
"""A made-up word; words left out; neighbours swapped; words of the same meaning."""
_DELETED = 0.2
"""Share of the words that are left out, of a sentence that loses any."""
_REACH = 3.0
"""Lample's: words move by two places at most."""
_REPLACED = 0.5
"""Share of the words with a synonym that are replaced."""


def chosen_families(
    lexicon: Lexicon | None, without: Collection[str], *, deletion: float, reach: float, replacement: float
) -> list[str]:
    """Families that leave the meaning, as far as the options of `augment` tell, but for those left out.

    Args:
        lexicon: None where it is not known.
        without: Families to leave out.
        deletion: 0 where words may not be left out.
        reach: Up to 1 where they may not be moved.
        replacement: 0 where they may not be replaced.

    Raises:
        BadOption: A family is unknown, or none is left.
    """
    synonyms = replacement > 0 and (lexicon is None or bool(lexicon.counts.any()))
    able = dict(zip(FAMILIES, (True, deletion > 0, reach > 1, synonyms), strict=True))
    families = [name for name in FAMILIES if able[name] and name not in without]
    if set(without) - set(FAMILIES) or not families:
        raise BadOption(
            f"without is {', '.join(sorted(without))}; name some of {', '.join(FAMILIES)}, and leave one that this "
            f"task draws: {', '.join(name for name in FAMILIES if able[name])}."
        )
    return families


def strong(
    tokens: Tensor,
    text: Tokeniser,
    lexicon: Lexicon,
    families: Collection[str],
    generator: torch.Generator,
    *,
    longest: int,
    spelled: float,
) -> Tensor:
    """Each sentence with one change of a family that is drawn for it; rows of the same shape.

    Args:
        tokens: int64 ``(batch, length)``, padded; they are not written into. A row without room gets no word.
        text: What cut the sentences.
        lexicon: Synonyms.
        families: Of `FAMILIES`, at least one.
        generator: Every draw comes from it.
        longest: Most letters of a made-up word, or tokens.
        spelled: Share of such words that are spelled with random letters.
    """
    device, pad = tokens.device, text.pad
    begins, special, lexicon = text.begins.to(device), text.special.to(device), lexicon.to(device)

    def inserted() -> Tensor:
        words = made_up_words(len(tokens), longest, text, generator, spelled=spelled)
        return insert_words(tokens, words, begins, special, pad, generator)[0]

    changes: Mapping[str, Callable[[], Tensor]] = {
        "insertion": inserted,
        "deletion": lambda: delete_words(tokens, begins, special, pad, _DELETED, generator),
        "order": lambda: shuffle_words(tokens, begins, special, _REACH, generator),
        "synonym": lambda: replace_words(tokens, begins, special, lexicon, _REPLACED, generator),
    }
    drawn = torch.randint(len(families), (len(tokens), 1), generator=generator, device=generator.device).to(device)
    out = tokens
    for place, family in enumerate(families):
        out = torch.where(drawn == place, changes[family](), out)
    return out
