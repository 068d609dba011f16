"""Pairs of sentences from a data set of the Hugging Face Hub, fetched where a loader is asked for it without a path."""

from __future__ import annotations

from typing import Any

from unbackdoor.attacker.vetting import may_fetch
from unbackdoor.errors import FileRefused, UnbackdoorError, UntrustedVictim
from unbackdoor_translation.data.files import fields_of, sentence
from unbackdoor_translation.sequences import Corpus

__all__ = ["read_hub"]


def read_hub(name: str, config: str | None, source: str, target: str, most: int | None) -> dict[str, Corpus]:
    """Pairs of a data set of the Hugging Face Hub by part; at most ``most`` of each.

    Fields are ``source`` and ``target`` themselves, or those of an inner ``translation``.

    Raises:
        FileRefused: It cannot be had: no network, no such name, or ``datasets`` is not installed.
        BadData: It holds no pairs of text.
        UntrustedVictim: A victim's card asks for it, and not the user.
    """
    if not may_fetch(name):
        raise UntrustedVictim(
            f"a victim's folder asks for {name} of the Hub, but nothing is fetched for a card; fetch it and give "
            "--data-path FILE (data_path=...)."
        )
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise FileRefused('the Hub needs: pip install "unbackdoor-translation[hub]"; or give a local path.') from error
    try:
        parts = load_dataset(name, config)
        return {part: _of_rows(rows, source, target, most, name) for part, rows in parts.items()}
    except UnbackdoorError:
        raise
    except Exception as error:
        raise FileRefused(f"{name} cannot be had from the Hub ({error}); give a local path.") from error


def _of_rows(rows: Any, source: str, target: str, most: int | None, name: str) -> Corpus:
    sides: tuple[list[str], list[str]] = ([], [])
    for place, row in enumerate(rows):
        if most is not None and place >= most:
            break
        where, item = f"row {place} of {name}", row.get("translation", row)
        names = fields_of(item, source, target, where, None)
        texts = [sentence(item[field], f"{field!r} in {where}") for field in names]
        if all(text.strip() for text in texts):
            for side, text in zip(sides, texts, strict=True):
                side.append(text)
    return Corpus(*map(tuple, sides))
