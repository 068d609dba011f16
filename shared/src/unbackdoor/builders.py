"""Models by name: those of a task package, those of the libraries that it knows, or a function in the user's code."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from unbackdoor.backend import seeded
from unbackdoor.errors import BadOption, UnknownName, UnsupportedModel
from unbackdoor.registry import unknown

__all__ = ["Maker", "build_model", "none_like", "seeded"]

Maker = Callable[..., Any]
"""``maker(num_classes=..., **options)`` gives an ``nn.Module`` with random weights."""


def build_model(
    name: str,
    makers: Mapping[str, Maker],
    sources: Mapping[str, Callable[[str], Maker]] | None = None,
    *,
    num_classes: int,
    seed: int,
    options: Mapping[str, Any],
) -> nn.Module:
    """What ``TaskKit.build`` of a package does.

    Args:
        name: A name of ``makers``, ``SOURCE:NAME`` for one of ``sources``, or ``module:function`` for the user's own
            function, looked for in the current directory too.
        makers: The package's own models.
        sources: Libraries by prefix; each gives the maker of a name, or raises `none_like`.
        num_classes: Passed to the maker.
        seed: Of the initial weights, see `seeded`.
        options: Further keywords of the maker.

    Returns:
        The model, on the CPU unless its maker moves it.

    Raises:
        UnknownName: Nothing has this name.
        BadOption: The maker does not take these options.
        UnsupportedModel: It returned no module.
    """
    maker = _maker(name, makers, sources or {})
    with seeded(seed):
        try:
            model = maker(num_classes=num_classes, **options)
        except TypeError as error:
            given = ", ".join(f"{key}={value!r}" for key, value in {"num_classes": num_classes, **options}.items())
            raise BadOption(f"{name} cannot be built with {given}: {error}.") from error
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"{name} returned a {type(model).__name__}; it must return an nn.Module.")
    return model


def none_like(kind: str, given: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that a long list does not have: some like it, else some to begin with."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=5, cutoff=0.4)
    hint = f" Did you mean {', '.join(near)}?" if near else f" There are {len(names)}, such as {', '.join(names[:5])}."
    return UnknownName(f"no {kind} {given!r}.{hint}")


def _maker(name: str, makers: Mapping[str, Maker], sources: Mapping[str, Callable[[str], Maker]]) -> Maker:
    if name in makers:
        return makers[name]
    prefix, _, rest = name.partition(":")
    others = [f"{source}:NAME" for source in sources]
    if not rest:
        ways = [*others, "or my_module:function for your own"] if others else ["my_module:function for your own"]
        raise UnknownName(f"{unknown('model', name, makers)} Also: {', '.join(ways)}.")
    if prefix in sources:
        return sources[prefix](rest)
    return _of_the_user(name, prefix, rest, others)


def _of_the_user(name: str, module_name: str, attribute: str, others: list[str]) -> Maker:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not module_name.startswith(error.name):
            raise UnknownName(f"{name}: {module_name} imports {error.name!r}, which is not installed.") from error
        instead = f", or use {' or '.join(others)}" if others else ""
        raise UnknownName(
            f"no model {name!r}: no module {module_name!r} in the current directory or among the installed packages. "
            f"Run from the folder that holds it{instead}."
        ) from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    if not callable(getattr(module, attribute, None)):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise none_like(f"function in {module_name}", attribute, functions)
    found: Maker = getattr(module, attribute)
    return found
