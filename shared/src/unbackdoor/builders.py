"""Models by name: those of a task package, those of the libraries that it knows, or a function in the user's code."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from unbackdoor.attacker.vetting import FETCHING, TRUST, check_options, closed, fetching
from unbackdoor.attacker.victim_card import told
from unbackdoor.errors import BadOption, UnbackdoorError, UnknownName, UnsupportedModel, UntrustedVictim
from unbackdoor.network.backend import seeded
from unbackdoor.registry import unknown
from unbackdoor.spelling import did_you_mean

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
    passed: Mapping[str, Collection[str]] | None = None,
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
        passed: By model or source, options that makers with ``**options`` hand on to a library and that a victim's card
            may set. A card may name no source that is missing here.

    Returns:
        The model, on the CPU unless its maker moves it.

    Raises:
        UnknownName: Nothing has this name.
        BadOption: The maker does not take these options, or they ask for weights from elsewhere.
        UnsupportedModel: It returned no module.
        UntrustedVictim: A victim's card named what only the user may name, see
            `unbackdoor.attacker.vetting.words_of_a_card`.
    """
    words = {"num_classes": num_classes, **options}
    source = name.partition(":")[0] if name not in makers else name
    if closed():
        maker = _maker_of_a_card(name, makers, sources or {}, passed or {})
        _check_card(name, maker, words, (passed or {}).get(source, ()))
    else:
        maker = _maker(name, makers, sources or {})
        if name in makers or source in (sources or {}):
            _check_weights(name, words, maker if name in makers else None)
    with seeded(seed):
        try:
            model = maker(**words)
        except UnbackdoorError:
            raise
        except Exception as error:
            given = ", ".join(f"{key}={value!r}" for key, value in words.items())
            reason = str(error) if isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: {error}"
            raise BadOption(f"{name} cannot be built with {given}: {reason.strip().rstrip('.')}.") from error
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"{name} returned a {type(model).__name__}; it must return an nn.Module.")
    return model


def _check_weights(name: str, words: Mapping[str, Any], own_maker: Maker | None) -> None:
    """Refuse options that would load weights or fetch files, but for those that a maker of a package names itself."""
    own = set() if own_maker is None else {*inspect.signature(own_maker).parameters}
    found = [key for key in fetching(words) if key not in own]
    if found:
        raise BadOption(
            f"{name} is built without {found[0]!r}: weights come from the checkpoint that you give, and nothing is "
            "downloaded. Leave that option out."
        )


def _check_card(name: str, maker: Maker, words: Mapping[str, Any], passed: Collection[str]) -> None:
    forbidden = sorted(FETCHING & set(words))
    if forbidden:
        raise UntrustedVictim(
            f"card.json (model_options): {forbidden[0]} would load weights, files or code from elsewhere, which no "
            "card may; the weights of a victim are its model.safetensors. Make the victim again without it."
        )
    count = words["num_classes"]
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise BadOption(f"card.json (model_options): num_classes is {told(count)}; it must be a whole number from 1.")
    check_options(f"card.json (model_options of {name})", words, maker, texts=None, passed={"num_classes", *passed})


def _maker_of_a_card(
    name: str,
    makers: Mapping[str, Maker],
    sources: Mapping[str, Callable[[str], Maker]],
    passed: Mapping[str, Collection[str]],
) -> Maker:
    if name in makers:
        return makers[name]
    prefix, colon, rest = name.partition(":")
    if colon and prefix in sources and prefix in passed:
        return sources[prefix](rest)
    if not colon:
        raise unknown("model", name, makers)
    known = ", ".join([*makers, *(f"{source}:NAME" for source in sources if source in passed)])
    raise UntrustedVictim(
        f"card.json asks for the model {told(name)}, which would run or fetch what is not in the victim's folder; a "
        f"card may name {known}. {TRUST}."
    )


def none_like(kind: str, given: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that a long list does not have: some like it, else some to begin with."""
    names = sorted(known)
    hint = did_you_mean(given, names, 5) or f" There are {len(names)}, such as {', '.join(names[:5])}."
    error = UnknownName(f"no {kind} {given!r}.{hint}")
    error.known = tuple(names)
    return error


def _names(name: str, makers: Mapping[str, Maker], sources: Mapping[str, Callable[[str], Maker]]) -> list[str]:
    """What can be typed for a model: names of the package and, with their prefixes, of the libraries at hand.

    A library says what it has in the error for a name that it does not have; one that has no list is left out. The
    first that has ``name`` ends the search: importing the next would take seconds.
    """
    found = list(makers)
    for prefix, source in sources.items():
        if any(one.rpartition(":")[2] == name for one in found):
            break
        try:
            source("")
        except (UnbackdoorError, ImportError) as error:  # ImportError: the library is not installed
            found += [f"{prefix}:{one}" for one in getattr(error, "known", ())]
    return found


def _maker(name: str, makers: Mapping[str, Maker], sources: Mapping[str, Callable[[str], Maker]]) -> Maker:
    if name in makers:
        return makers[name]
    prefix, _, rest = name.partition(":")
    others = [f"{source}:NAME" for source in sources]
    if not rest:
        ways = [*others, "or my_module:function for your own"] if others else ["my_module:function for your own"]
        raise UnknownName(
            f"no model {name!r}. Known: {', '.join(sorted(makers)) or 'none'}. Also: {', '.join(ways)}."
            f"{did_you_mean(name, _names(name, makers, sources), 3)}"
        )
    if prefix in sources:
        try:
            return sources[prefix](rest)
        except UnknownName as error:
            if not error.known:
                raise
            raise none_like(f"{prefix} model", name, [f"{prefix}:{one}" for one in error.known]) from error
    return _of_the_user(name, prefix, rest, others, lambda: _names(name, makers, sources))


def _of_the_user(
    name: str, module_name: str, attribute: str, others: list[str], known: Callable[[], list[str]]
) -> Maker:
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
            f"Run from the folder that holds it{instead}.{did_you_mean(name, known())}"
        ) from error
    except Exception as error:  # whatever the user's own code or an odd name raises
        reason = f"{type(error).__name__}: {error}".strip().rstrip(".")
        raise BadOption(f"{name}: the module {module_name} cannot be imported ({reason}).") from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    if not callable(getattr(module, attribute, None)):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise none_like(f"function in {module_name}", attribute, functions)
    found: Maker = getattr(module, attribute)
    return found
