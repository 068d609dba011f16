"""From words of the command line to typed options of methods, attacks, models and data."""

from __future__ import annotations

import ast
import difflib
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from unbackdoor.errors import BadOption

__all__ = ["convert", "hyper_parameters", "literal", "pairs", "typed"]

_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_PLAIN: dict[type, str] = {int: "a whole number", float: "a number", str: "text"}


def literal(text: str) -> Any:
    """The value that ``text`` looks like: ``3``, ``0.5``, ``true``, ``none``, ``1,2,3``, else itself."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return tuple(literal(part.strip()) for part in text.split(",") if part.strip()) if "," in text else text


def convert(text: str, wanted: Any, name: str) -> Any:
    """``text`` as the type ``wanted``: a plain type, ``Literal``, ``X | None`` or a sequence.

    Raises:
        BadOption: It cannot be read so.
    """
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        if type(None) in inner and text.lower() in ("none", ""):
            return None
        return _first_that_fits(text, [kind for kind in inner if kind is not type(None)], name)
    if origin is Literal:
        return _one_of(text, inner, name)
    if wanted is bool:
        if text.lower() not in _YES + _NO:
            raise BadOption(f"{name} is {text!r}; it must be true or false.")
        return text.lower() in _YES
    if wanted in _PLAIN:
        try:
            return wanted(text)
        except ValueError as error:
            raise BadOption(f"{name} is {text!r}; it must be {_PLAIN[wanted]}.") from error
    if origin in (tuple, list, Sequence):
        kind = inner[0] if inner else str
        return tuple(convert(part.strip(), kind, name) for part in text.split(",") if part.strip())
    return literal(text)


def pairs(given: Iterable[str] | None, flag: str) -> dict[str, str]:
    """``K=V`` words as a mapping.

    Raises:
        BadOption: A word has no ``=``, or a name comes twice.
    """
    found: dict[str, str] = {}
    for word in given or ():
        name, equals, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise BadOption(f"{flag} {word!r} is not of the form NAME=VALUE, such as {flag} size=32.")
        if name in found:
            raise BadOption(f"{flag} {name} is given twice; give it once.")
        found[name] = value
    return found


def typed(owner: Callable[..., Any], given: Mapping[str, str], flag: str) -> dict[str, Any]:
    """``given`` in the types that the signature of ``owner`` names.

    Raises:
        BadOption: ``owner`` takes no such option, or a value is of another type.
    """
    takes = inspect.signature(owner).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        known = [name for name, p in takes.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        for name in given:
            if name not in known:
                raise BadOption(f"{flag} {name!r} is not known here{_close(name, known)}. Known: {', '.join(known)}.")
    hints = _hints(owner)
    return {
        name: convert(text, hints[name], f"{flag} {name}") if name in hints else literal(text)
        for name, text in given.items()
    }


def hyper_parameters(words: Sequence[str], method: type[Any]) -> dict[str, Any]:
    """Fields of ``method`` from flags: ``--lr 0.5``, ``--lr=0.5``, ``--relative``, ``--no-relative``.

    Raises:
        BadOption: A word is no flag of the method; the message lists them.
    """
    hints = get_type_hints(method)
    known = {f.name: hints[f.name] for f in fields(method) if f.init}
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        switch_off = name.removeprefix("no_") if name not in known else name
        if not word.startswith("--") or (name not in known and known.get(switch_off) is not bool):
            raise _no_flag(word, known, method)
        if switch_off != name:
            name, value = switch_off, "false"
        elif not equals and known[name] is bool and (not rest or rest[0].lower() not in _YES + _NO):
            value = "true"
        elif not equals:
            if not rest:
                raise BadOption(f"{word} needs a value.")
            value = rest.pop(0)
        if name in found:
            raise BadOption(f"--{name.replace('_', '-')} is given twice; give it once.")
        found[name] = convert(value, known[name], f"--{name.replace('_', '-')}")
    return found


def _no_flag(word: str, known: Iterable[str], method: type[Any]) -> BadOption:
    flags = [f"--{name.replace('_', '-')}" for name in known]
    given = word.partition("=")[0]
    kind = "no such flag" if word.startswith("-") else "a stray word"
    return BadOption(
        f"{kind}: {given}{_close(given, flags)}. Hyper-parameters of {method.name}: {', '.join(flags)}. "
        "All other flags: unbackdoor purify --help."
    )


def _close(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _one_of(text: str, allowed: Sequence[Any], name: str) -> Any:
    for value in allowed:
        if text == str(value):
            return value
    raise BadOption(f"{name} is {text!r}; it must be one of {', '.join(map(str, allowed))}.")


def _first_that_fits(text: str, kinds: Sequence[Any], name: str) -> Any:
    for kind in kinds[:-1]:
        try:
            return convert(text, kind, name)
        except BadOption:
            continue
    return convert(text, kinds[-1], name)


def _hints(owner: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(owner if inspect.isfunction(owner) or inspect.isclass(owner) else type(owner).__call__)
    except (NameError, TypeError):
        return {}
