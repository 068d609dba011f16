"""What a victim's card may ask of the code that opens it, in a closed list: everything else needs the user's trust.

A card is written by whoever made the victim. Its options are therefore held against the signature of what they go to,
by name and by type; a text must be one that its owner declares to be no name of a file.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from unbackdoor.attacker.victim_card import told
from unbackdoor.errors import BadOption, UntrustedVictim

__all__ = [
    "FETCHING",
    "TRUST",
    "check_options",
    "closed",
    "fetching",
    "may_fetch",
    "without_fetching",
    "words_of_a_card",
]

TRUST = "Give --trust (trust=True) if you made this victim yourself or trust whoever did"
_LARGEST = 10**6
"""No number in a card counts more of anything."""

FETCHING = frozenset(
    {
        "auto_map", "cache_dir", "checkpoint_path", "code_revision", "force_download", "hf_hub_id", "local_files_only",
        "pretrained", "pretrained_backbone", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict",
        "pretrained_weights", "proxies", "resume_download", "revision", "token", "trust_remote_code", "use_auth_token",
        "weights", "weights_backbone",
    }
)  # fmt: skip
"""Options of models of the usual libraries that load weights, fetch files or run foreign code."""

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_ +-]{0,63}")


@dataclass(frozen=True)
class _Card:
    """Whose words are at work."""

    trust: bool
    own: frozenset[str]


_CARD: ContextVar[_Card | None] = ContextVar("card", default=None)


@contextmanager
def words_of_a_card(*, trust: bool, own: frozenset[str] = frozenset()) -> Iterator[None]:
    """Inside, names of models, options and files are those of a victim's card, and not the user's.

    Args:
        trust: Whether the user trusts who made it.
        own: What the user gave all the same.
    """
    before = _CARD.set(_Card(trust, own))
    try:
        yield
    finally:
        _CARD.reset(before)


def closed() -> bool:
    """Whether a card of somebody whom nobody vouches for is read here: it may name no code and no file."""
    card = _CARD.get()
    return card is not None and not card.trust


def may_fetch(name: str) -> bool:
    """Whether a network may be asked for ``name``: the user's own word, never that of a card, trusted or not."""
    card = _CARD.get()
    return card is None or name in card.own


def fetching(options: Any) -> list[str]:
    """Names in ``options``, however deep, that are in `FETCHING` and ask for something."""
    if isinstance(options, Mapping):
        own = [str(name) for name, value in options.items() if name in FETCHING and value not in (None, False, "")]
        return own + [name for value in options.values() for name in fetching(value)]
    if isinstance(options, list | tuple):
        return [name for value in options for name in fetching(value)]
    return []


def without_fetching(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a model as a card keeps them: where its first weights came from is left out."""
    return {name: value for name, value in options.items() if name not in FETCHING}


def check_options(
    what: str,
    given: Mapping[str, Any],
    owner: Callable[..., Any],
    *,
    texts: Collection[str] | None = (),
    free: bool = False,
    without: Collection[str] = (),
    passed: Collection[str] | None = None,
) -> None:
    """Refuse options of a card that ``owner`` does not take, of another type, or that could name a file.

    Args:
        what: Where they stand, such as ``card.json (data_options)``.
        given: The options.
        owner: Takes them as keywords; its annotations say of which type they are.
        texts: Options whose text is no name of a file, None for all. Any other text must be the default, or one of a
            ``Literal``.
        free: Whether those texts may be of any words; else they are short plain words.
        without: Parameters that a card does not set.
        passed: Options that ``owner`` hands on to a library, where it takes any: numbers, switches and short words.

    Raises:
        BadOption: An option is not known, or its value is of another type.
        UntrustedVictim: A text is not among those that a card may choose.
    """
    takes = inspect.signature(owner).parameters
    named = {n: p for n, p in takes.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and n not in without}
    hints = _hints(owner)
    for name, value in given.items():
        if name in named:
            wanted = hints.get(name, named[name].annotation)
            fault = _seed_wrong(value) if name.endswith("seed") else _typed_wrong(value, wanted)
            if fault:
                raise BadOption(f"{what}: {name} is {told(value)}; it must be {fault}.")
            if isinstance(value, str | list) and value != named[name].default:
                declared = (texts is None or name in texts) and Path not in (wanted, *get_args(wanted))
                _check_texts(what, name, value, declared, free, wanted)
        elif passed is not None and name in passed:
            if not _scalar(value) and not (isinstance(value, list) and len(value) <= 64 and all(map(_scalar, value))):
                raise BadOption(f"{what}: {name} is {told(value)}; it must be a number, a switch or a short word.")
        else:
            known = sorted({*named, *(passed or ())})
            raise BadOption(
                f"{what}: a card may not set {told(name)} here; it may set {', '.join(known) or 'nothing'}. {TRUST}."
            )


def _typed_wrong(value: Any, wanted: Any) -> str:
    """What ``value`` must be where the annotation does not allow it; nothing where it does."""
    return "" if _fits(value, wanted) else _in_words(wanted)


def _seed_wrong(value: Any) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return "" if whole else "a whole number from 0"


def _fits(value: Any, wanted: Any) -> bool:
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if wanted in (None, type(None)):
        return value is None
    if wanted is bool:
        return isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)
    if wanted is str:
        return isinstance(value, str)
    if origin in (tuple, list, Sequence):
        kinds = [one for one in inner if one is not Ellipsis]
        return isinstance(value, list) and all(any(_fits(one, kind) for kind in kinds) for one in value)
    return False


def _in_words(wanted: Any) -> str:
    plain: dict[Any, str] = {
        bool: "true or false",
        int: f"a whole number of at most {_LARGEST:,}",
        float: "a finite number",
        str: "text",
        type(None): "null",
    }
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(words for one in inner if (words := _in_words(one))))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (tuple, list, Sequence):
        return f"a list, each {' or '.join(_in_words(one) for one in inner if one is not Ellipsis)}"
    return plain.get(wanted, "left out, as it is nothing that a card can hold")


def _check_texts(what: str, name: str, value: Any, declared: bool, free: bool, wanted: Any) -> None:
    if isinstance(value, list):
        for one in value:
            _check_texts(what, name, one, declared, free, wanted)
        return
    if not isinstance(value, str) or get_origin(wanted) is Literal:
        return
    if not declared:
        raise UntrustedVictim(
            f"{what}: {name} is {told(value)}, which may name a file outside the victim's folder. {TRUST}."
        )
    if not (free and value.isprintable()) and not _WORD.fullmatch(value):
        raise UntrustedVictim(f"{what}: {name} is {told(value)}, which is no plain word. {TRUST}.")


def _scalar(value: Any) -> bool:
    if isinstance(value, str):
        return bool(_WORD.fullmatch(value)) or value == ""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= _LARGEST
    return value is None or isinstance(value, bool) or (isinstance(value, float) and _finite(value))


def _finite(value: float) -> bool:
    return math.isfinite(value) and abs(value) <= 1e12


def _hints(owner: Callable[..., Any]) -> dict[str, Any]:
    """Types of parameters by name; of those that name what only a type checker sees there is none."""
    called = getattr(owner, "func", owner)
    found: dict[str, Any] = {}
    if not inspect.isclass(called):
        spaces = [(called, getattr(called, "__globals__", {}))]
    elif is_dataclass(called):
        spaces = [(base, vars(sys.modules[base.__module__])) for base in reversed(called.__mro__)]
    else:
        spaces = [(called.__init__, getattr(called.__init__, "__globals__", {}))]
    for owner_of, names in spaces:
        for name, written in inspect.get_annotations(owner_of).items():
            with suppress(NameError, TypeError):
                found[name] = get_type_hints(SimpleNamespace(__annotations__={"x": written}), names)["x"]
    return found
