"""From words of the command line to typed options of methods, attacks, models and data."""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from unbackdoor.errors import BadOption
from unbackdoor.spelling import near

__all__ = ["convert", "hyper_parameters", "limits", "literal", "meant", "pairs", "takes", "typed"]

_ALIKE = 0.8
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


def pairs(given: Iterable[str] | None, flag: str, example: str = "size=32") -> dict[str, str]:
    """``K=V`` words as a mapping.

    Args:
        given: Words of the command line.
        flag: Before each of them.
        example: For the message.

    Raises:
        BadOption: A word has no ``=``, or a name comes twice.
    """
    found: dict[str, str] = {}
    for word in given or ():
        name, equals, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise BadOption(f"{flag} {word!r} is not of the form NAME=VALUE, such as {flag} {example}.")
        if name in found:
            raise BadOption(f"{flag} {name} is given twice; give it once.")
        found[name] = value
    return found


def limits(given: Mapping[str, str]) -> dict[str, int]:
    """Values of ``--limit`` as whole numbers; `unbackdoor.files.reading.limited` knows their names.

    Raises:
        BadOption: One is no whole number.
    """
    return {name: convert(text, int, f"--limit {name}") for name, text in given.items()}


def takes(owner: Callable[..., Any]) -> list[str]:
    """Names of the options that can be given to ``owner`` on a command line."""
    found = inspect.signature(owner).parameters
    return [
        name
        for name, p in found.items()
        if p.kind is p.KEYWORD_ONLY or (p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty)
    ]


def typed(
    owner: Callable[..., Any],
    given: Mapping[str, str],
    flag: str,
    elsewhere: Mapping[str, Callable[..., Any]] | None = None,
) -> dict[str, Any]:
    """``given`` in the types that the signature of ``owner`` names.

    Args:
        owner: What takes them.
        given: Names and words.
        flag: Before each on the command line.
        elsewhere: Other flags with what takes their options, for who has mistaken one for the other.

    Raises:
        BadOption: ``owner`` takes no such option, or a value is of another type.
    """
    known = takes(owner)
    if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(owner).parameters.values()):
        for name in given:
            if name not in known:
                others = {f"{other} {key}": key for other, of in (elsewhere or {}).items() for key in takes(of)}
                named = [full for full, key in others.items() if key == name]
                hint = f" (did you mean {named[0]}=...?)" if named else _close(name, known)
                raise BadOption(f"{flag} {name!r} is not known here{hint}. Known: {', '.join(known) or 'none'}.")
    hints = _hints(owner)
    return {
        name: convert(text, hints[name], f"{flag} {name}") if name in hints else literal(text)
        for name, text in given.items()
    }


def hyper_parameters(
    words: Sequence[str], method: type[Any], others: Iterable[str] = (), keys: Callable[[], Iterable[str]] = tuple
) -> dict[str, Any]:
    """Fields of ``method`` from flags: ``--lr 0.5``, ``--lr=0.5``, ``--relative``, ``--no-relative``.

    Args:
        words: That are no flags of the command itself.
        method: What is run.
        others: Flags of the command itself, for suggestions.
        keys: Gives what is typed with a key, such as ``--data-option fit=``; asked where no flag is alike.

    Raises:
        BadOption: A word is no flag of the method; the message says which flag may have been meant.
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
            raise _no_flag(word, known, method, others, keys)
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


def meant(given: str, flags: Sequence[str], keys: Callable[[], Iterable[str]]) -> str:
    """Which flag was meant, in brackets; ``keys`` are asked, which takes seconds, where none is very much alike."""
    found = near(given, flags, cutoff=_ALIKE)
    if not found:
        typed_so = {f"--{full.rpartition(' ')[2].rstrip('=')}": f"{full}..." for full in keys()}
        found = [typed_so.get(name, name) for name in near(given, [*typed_so, *flags])]
    return f" (did you mean {found[0]}?)" if found else ""


def _no_flag(
    word: str,
    known: Mapping[str, Any],
    method: type[Any],
    others: Iterable[str],
    keys: Callable[[], Iterable[str]],
) -> BadOption:
    flags = [f"--{name.replace('_', '-')}" for name in known]
    given = word.partition("=")[0]
    if not word.startswith("-"):
        return BadOption(f"a stray word: {given}; every value stands behind its flag, such as --steps 300.")
    switches = [f"--no-{name.replace('_', '-')}" for name, kind in known.items() if kind is bool]
    hint = meant(given, [*flags, *others, *switches], keys)
    return BadOption(
        f"no such flag: {given}{hint}. Hyper-parameters of {method.name}: {', '.join(flags)}. All other flags: --help."
    )


def _close(name: str, known: Iterable[str]) -> str:
    found = near(name, known)
    return f" (did you mean {found[0]}?)" if found else ""


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
