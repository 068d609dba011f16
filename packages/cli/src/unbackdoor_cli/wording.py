"""Options in messages as the command line takes them: the library says ``classes=...``, a user types ``--classes``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from unbackdoor.errors import UnbackdoorError

__all__ = ["Spelling", "as_flag", "as_key", "as_typed", "spoken"]

Spelling = Callable[[str, str], str]
"""From the name and the value of an option to what has to be typed."""

_SEVERAL = ("classes", "mean", "std")
_VALUE = r"\[[^\]]*\]|\([^)]*\)|'[^']*'|\"[^\"]*\"|\.\.\.|[^\s,;:()]*[^\s,;:().]"


def as_flag(name: str, value: str) -> str:
    """``--lr 0.1``, ``--relative``, ``--no-relative``."""
    flag = name.replace("_", "-")
    if value in ("True", "False"):
        return f"--{flag}" if value == "True" else f"--no-{flag}"
    return f"--{flag} {'A,B,C' if value == '...' and name in _SEVERAL else _plain(value)}"


def as_key(flag: str) -> Spelling:
    """``--data-option labels=...``."""
    return lambda name, value: f"{flag} {name}={_plain(value)}"


def as_typed(text: str, options: Mapping[str, Spelling]) -> str:
    """``text`` with every ``name=value`` of ``options`` as it has to be typed, once where it is said in both ways."""
    if not options:
        return text
    names = "|".join(re.escape(name) for name in sorted(options, key=len, reverse=True))
    given = re.compile(rf"(?<![\w.=/\\'\"-])(?<!-option )({names})=({_VALUE})")
    told = given.sub(lambda found: options[found[1]](found[1], found[2]), text)
    return re.sub(r"(--[\w-]+(?: [^\s()]+)?) \(\1\)", r"\1", told)


@contextmanager
def spoken(options: Mapping[str, Spelling]) -> Iterator[None]:
    """Errors that leave the block name ``options`` as they have to be typed."""
    try:
        yield
    except UnbackdoorError as error:
        error.args = tuple(as_typed(part, options) if isinstance(part, str) else part for part in error.args)
        raise


def _plain(value: str) -> str:
    """``['cat', 'dog']`` as ``cat,dog``."""
    inner = value[1:-1] if value[:1] in "[(" and len(value) > 1 else value
    return ",".join(part.strip().strip("'\"") for part in inner.split(",")) if inner != "..." else inner
