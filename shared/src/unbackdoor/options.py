"""Things whose dataclass fields are their options, their flags and their identity."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from unbackdoor.errors import BadOption
from unbackdoor.spelling import did_you_mean

__all__ = ["Configured", "option"]


def option(default: Any, help: str) -> Any:  # noqa: A002 - the command line's own word
    """A hyper-parameter: a dataclass field with its default and a line of explanation."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Configured:
    """Base of methods and defences: frozen dataclasses made from named presets and options."""

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def make(cls, preset: str | None = None, **options: Any) -> Self:
        """It with ``options`` over a named preset over the defaults.

        Raises:
            BadOption: An option or preset is unknown, or a value is of the wrong type.
        """
        if preset is not None and (not isinstance(preset, str) or preset not in cls.presets):
            known = ", ".join(sorted(cls.presets)) or "none"
            raise BadOption(
                f"{cls.name} has no preset {preset!r}. Known: {known}.{did_you_mean(str(preset), cls.presets)}"
            )
        known_options = {f.name for f in fields(cls)}
        for name in options:
            if name not in known_options:
                raise BadOption(
                    f"{cls.name} has no option {name!r}. Known: {', '.join(sorted(known_options))}."
                    f"{did_you_mean(name, known_options)}"
                )
        made = cls(**(dict(cls.presets[preset]) if preset else {}) | options)
        made._check_common()
        return made

    def _check_common(self) -> None:
        for name in ("steps", "batch_size"):
            value = getattr(self, name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadOption(f"{name} is {value!r}; it must be an integer of at least 1.")
        lr = getattr(self, "lr", 1.0)
        if not isinstance(lr, int | float) or not 0 < lr < float("inf"):
            raise BadOption(f"lr is {lr!r}; it must be a positive number.")
        for name, wanted in _types(type(self)).items():
            value = getattr(self, name)
            if not _fits(value, wanted):
                raise BadOption(f"{name} is {value!r}; it must be {_words(wanted)}.")

    def options(self) -> dict[str, Any]:
        """The hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


_PLAIN: Mapping[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "None",
}


def _types(cls: type[Configured]) -> dict[str, Any]:
    """The declared types of the options; empty where annotations cannot be read, as a plug-in's may be."""
    try:
        hints = get_type_hints(cls)
    except (NameError, TypeError):
        return {}
    return {f.name: hints[f.name] for f in fields(cls)}


def _fits(value: Any, wanted: Any) -> bool:
    """Whether ``value`` is of the type ``wanted``; true for kinds of types that no method uses."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return any(_fits(value, kind) for kind in inner)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # no NaN
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted in _PLAIN:
        return isinstance(value, wanted)
    if origin in (tuple, list, Sequence):
        kind = inner[0] if inner else Any
        return isinstance(value, tuple | list) and all(_fits(one, kind) for one in value)
    return True


def _words(wanted: Any) -> str:
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(kind) for kind in inner)
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin in (tuple, list, Sequence):
        return f"a sequence, each {_words(inner[0])}" if inner else "a sequence"
    return _PLAIN.get(wanted, str(wanted))
