"""What a user who mistyped a name may have meant; every error about a name asks here, so all of them suggest alike."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "near"]

_CUTOFF = 0.6


def near(given: str, known: Iterable[str], count: int = 1, *, cutoff: float = _CUTOFF) -> list[str]:
    """Up to ``count`` names of ``known`` that are spelt like ``given``, the likest first.

    Case, and whether words are joined by ``-`` or ``_``, make no difference. Neither does a prefix with a colon:
    ``resnet18`` finds ``torchvision:resnet18``, which is what has to be typed.
    """
    spelt: dict[str, list[str]] = {}
    for name in known:
        for form in {_plain(name), _plain(name.rpartition(":")[2])}:
            spelt.setdefault(form, []).append(name)
    wanted = {_plain(given), _plain(given.rpartition(":")[2])}
    scores: dict[str, float] = {}
    for one in sorted(wanted):
        for form in difflib.get_close_matches(one, spelt, n=count + 1, cutoff=cutoff):
            score = difflib.SequenceMatcher(None, one, form).ratio()
            for name in spelt[form]:
                scores[name] = max(score, scores.get(name, 0.0))
    if not scores and len(_plain(given)) > 2:
        return [name for form, names in spelt.items() if form.startswith(_plain(given)) for name in names][:count]
    if ":" in given:  # the prefix decides between names that are alike without it
        for name in scores:
            scores[name] += difflib.SequenceMatcher(None, _plain(given), _plain(name)).ratio()
    return sorted(scores, key=lambda name: -scores[name])[:count]


def did_you_mean(given: str, known: Iterable[str], count: int = 1) -> str:
    """Words that suggest, with a space before it; empty where nothing is alike."""
    found = near(given, known, count)
    return f" Did you mean {' or '.join(map(repr, found))}?" if found else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").strip()
