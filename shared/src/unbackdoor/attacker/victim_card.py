"""The card of a victim: what a folder may say of itself, in a closed form, and whether its files are the ones it names.

A victim's folder may come from anybody. Nothing here builds, imports or follows anything: a card is text of known
fields and plain values, and the files are regular files in the folder itself, each with its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from unbackdoor.errors import BadData, FileRefused, UntrustedVictim
from unbackdoor.files.reading import check_file, limited, limits, read_text, reading

__all__ = [
    "ATTACK",
    "CARD",
    "MODEL",
    "NO_ATTACK",
    "VictimCard",
    "card_digest",
    "card_text",
    "check_unchanged",
    "intact_file",
    "read_card",
    "signed",
    "told",
]

CARD = "card.json"
MODEL = "model.safetensors"
ATTACK = "attack.safetensors"
NO_ATTACK = "none"
"""The attack that the card of a benign model names."""
_SIZE = 2**20
_DEPTH = 6
_ITEMS = 1000
_LETTERS = 10_000
_FILES = 16
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


@dataclass(frozen=True, kw_only=True)
class VictimCard:
    """Where a victim comes from and what it does; stored as ``card.json``.

    ``attack`` is ``none`` for a benign model, made to see that a purification does no harm. ``figures`` holds the clean
    headline metric and, but for such a model, ``asr`` and ``lcr`` on the test part, in percent; ``hash`` is that of
    the weights, as reports have it; ``data_files`` names the files in the folder that reading the data again needs, see
    `Splits.files`; ``hashes`` has the SHA-256 of every file and, as ``card.json``, of the card without that entry.
    """

    task: str
    model: str
    model_options: Mapping[str, Any]
    data: str
    data_options: Mapping[str, Any]
    attack: str
    attack_options: Mapping[str, Any]
    train_options: Mapping[str, Any]
    seed: int
    figures: Mapping[str, float]
    hash: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    data_files: tuple[str, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the card with all its hashes: the identity of the whole victim."""
        return self.hashes.get(CARD, "")


def read_card(folder: str | Path) -> VictimCard:
    """The card of a victim's folder, of which every field is looked at; no other file is.

    Raises:
        FileRefused: There is none, it is no regular file, or it was changed since it was written.
        BadData: It is no JSON, or a field is missing, unknown or cannot be used; the message names it.
        TooLarge: It is longer than a card can be.
    """
    path = Path(folder) / CARD
    if not os.path.lexists(path):
        raise FileRefused(f"{folder} holds no victim (no {CARD}); make one: unbackdoor attack --out {folder}")
    _regular_file(path)
    with limited(text=min(_SIZE, limits().text)):
        text = read_text(path, what="victim's card")
    with reading(path, "make the victim again"):
        content = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    if not isinstance(content, dict):
        raise BadData(f"{path} holds a {type(content).__name__}; a victim's card is a JSON object.")
    known = {f.name for f in fields(VictimCard)}
    strange = sorted(set(content) - known)
    if strange:
        raise BadData(
            f"{path} has the field {told(strange[0])}, which no card has; known are {', '.join(sorted(known))}."
        )
    for name, check in _CHECKS.items():
        if name not in content:
            raise _wrong(path, name, "is missing")
        fault = check(content[name])
        if fault:
            raise _wrong(path, name, fault)
    benign = content["attack"] == NO_ATTACK
    if benign == ("asr" in content["figures"]) or (benign and content["attack_options"]):
        raise _wrong(path, "figures", f"does not fit the attack {told(content['attack'])}")
    _check_files(path, content)
    return VictimCard(**{**content, "data_files": tuple(content["data_files"])})


def check_unchanged(folder: str | Path, card: VictimCard) -> None:
    """Refuse a card that was edited after it was written.

    Raises:
        FileRefused: Its own hash is not that of its content.
    """
    if card_digest(card) != card.hashes[CARD]:
        raise FileRefused(f"{Path(folder) / CARD} was changed after it was written; make the victim again.")


def card_digest(card: VictimCard) -> str:
    """SHA-256 of the card's content, without the entry for the card itself."""
    content = {f.name: getattr(card, f.name) for f in fields(card)}
    content["hashes"] = {name: value for name, value in card.hashes.items() if name != CARD}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def signed(card: VictimCard, hashes: Mapping[str, str]) -> VictimCard:
    """The card that names these SHA-256 of the victim's files, and its own, without which no card is read.

    Args:
        card: Complete but for its hashes.
        hashes: Of every file beside the card.
    """
    files = {name: value for name, value in hashes.items() if name != CARD}
    card = replace(card, hashes=files)
    return replace(card, hashes={**files, CARD: card_digest(card)})


def card_text(card: VictimCard) -> str:
    """What ``card.json`` holds for ``card``."""
    return json.dumps(asdict(card), indent=2, allow_nan=False) + "\n"


def _file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _regular_file(path: Path) -> Path:
    """``path`` itself where it is a file of its own; a link could lead anywhere, and a pipe or a device has no end.

    Raises:
        FileRefused: It is missing.
        UntrustedVictim: It is no regular file.
    """
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError) as error:
        raise FileRefused(f"{path.parent} lacks {path.name}, which its card names; make the victim again.") from error
    if not stat.S_ISREG(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise UntrustedVictim(
            f"{path} is {kind}; a victim's folder holds regular files alone. Copy the file itself there."
        )
    return path


def intact_file(folder: str | Path, name: str, card: VictimCard) -> Path:
    """The file ``name`` of a victim, once its bytes are those that the card names.

    Raises:
        FileRefused: It is missing, or its bytes are others.
        TooLarge: It is larger than `Limits.memory`.
        UntrustedVictim: See `_regular_file`.
    """
    path = check_file(_regular_file(Path(folder) / name), at_most=limits().memory)
    with reading(path, "make the victim again"):
        digest = _file_digest(path)
    if digest != card.hashes[name]:
        what = {MODEL: "the model", ATTACK: "the attack"}.get(name, "the file")
        raise FileRefused(f"{path} is not {what} that {CARD} describes; fetch or make the victim again.")
    return path


def told(value: Any) -> str:
    """A value from a card as it may be shown: short and of printable letters."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _wrong(path: Path, name: str, fault: str) -> BadData:
    advice = "make the victim again: unbackdoor attack"
    if name == "hashes":
        advice = "a victim without hashes of all its files, as older versions wrote it, has to be made again"
    return BadData(f"{path}: the field {name!r} {fault}; {advice}.")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        return f"is {told(value)}; it must be text"
    if not 0 < len(value) <= 200 or not value.isprintable() or value != value.strip():
        return f"is {told(value)}; it must be a name of 1 to 200 printable letters"
    return ""


def _seed(value: Any) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return "" if whole and 0 <= value < 2**63 else f"is {told(value)}; it must be a whole number from 0"


def _flat(value: Any) -> str:
    fault = _mapping(value)
    nested = [] if fault else [name for name, inner in value.items() if isinstance(inner, dict)]
    return f"has {nested[0]} = {told(value[nested[0]])}, which is an object" if nested else fault


def _mapping(value: Any) -> str:
    if not isinstance(value, dict):
        return f"is {told(value)}; it must be an object of names and values"
    for name, inner in value.items():
        if not _WORD.fullmatch(name):
            return f"has the entry {told(name)}, which is no name of an option"
        fault = _plain(inner)
        if fault:
            return f"has {name} = {told(inner)}, {fault}"
    return ""


def _plain(value: Any, depth: int = 0) -> str:
    """What is wrong with a value of an option: a card holds plain ones, none of them without end."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, int):
        return "" if abs(value) < 2**63 else "a number beyond 64 bits"
    if isinstance(value, float):
        return "" if math.isfinite(value) else "which is no finite number"
    if isinstance(value, str):
        return "" if len(value) <= _LETTERS else f"a text of more than {_LETTERS:,} letters"
    if depth == _DEPTH:
        return f"which is nested more than {_DEPTH} times"
    if len(value) > _ITEMS:
        return f"which has more than {_ITEMS:,} entries"
    inner = value.values() if isinstance(value, dict) else value
    return next((fault for one in inner if (fault := _plain(one, depth + 1))), "")


def _figures(value: Any) -> str:
    if not isinstance(value, dict) or not value:
        return f"is {told(value)}; it must name the clean score and, but for a benign model, the asr"
    for name, figure in value.items():
        number = isinstance(figure, int | float) and not isinstance(figure, bool) and math.isfinite(figure)
        if _text(name) or not number:
            return f"has {told(name)} = {told(figure)}; figures are finite numbers"
    return ""


def _versions(value: Any) -> str:
    if not isinstance(value, dict) or not all(isinstance(one, str) and len(one) <= 500 for one in value.values()):
        return f"is {told(value)}; it must be an object of texts"
    return ""


def _names(value: Any) -> str:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        return f"is {told(value)}; it must be a list of file names"
    for one in value:
        if not _NAME.fullmatch(one) or one in (CARD, MODEL, ATTACK):
            return f"names {told(one)}; it must name plain files in the folder itself"
    return "" if len(value) == len(set(value)) <= _FILES else f"names a file twice or more than {_FILES} files"


def _digest(value: Any) -> str:
    good = isinstance(value, str) and _DIGEST.fullmatch(value)
    return "" if good else f"is {told(value)}; it must be a SHA-256 of 64 hexadecimal digits"


def _hashes(value: Any) -> str:
    if not isinstance(value, dict) or not value:
        return f"is {told(value)}; it must have the SHA-256 of every file"
    return next((f"has for {told(name)} what {fault}" for name, one in value.items() if (fault := _digest(one))), "")


_CHECKS: Mapping[str, Callable[[Any], str]] = {
    "task": _text,
    "model": _text,
    "model_options": _mapping,
    "data": _text,
    "data_options": _flat,
    "attack": _text,
    "attack_options": _flat,
    "train_options": _flat,
    "seed": _seed,
    "figures": _figures,
    "versions": _versions,
    "data_files": _names,
    "hashes": _hashes,
    "hash": _digest,
}
"""What is wrong with each field, as the rest of a message; nothing where it is right."""


def _check_files(path: Path, content: Mapping[str, Any]) -> None:
    wanted, given = {CARD, MODEL, ATTACK, *content["data_files"]}, set(content["hashes"])
    if wanted - given:
        raise _wrong(path, "hashes", f"lacks {', '.join(sorted(wanted - given))}")
    if given - wanted:
        raise _wrong(path, "hashes", f"names {told(min(given - wanted))}, which is no file of this victim")
