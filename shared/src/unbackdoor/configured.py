"""Things whose dataclass fields are their options, their flags and their identity."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from unbackdoor.errors import BadOption

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
        if preset is not None and preset not in cls.presets:
            known = ", ".join(sorted(cls.presets)) or "none"
            raise BadOption(f"{cls.name} has no preset {preset!r}. Known: {known}.")
        known_options = {f.name for f in fields(cls)}
        for name in options:
            if name not in known_options:
                near = difflib.get_close_matches(name, known_options, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise BadOption(f"{cls.name} has no option {name!r}. Known: {', '.join(sorted(known_options))}.{hint}")
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

    def options(self) -> dict[str, Any]:
        """The hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
