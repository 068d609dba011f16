"""Names to things: methods are the folders of ``methods/``, tasks are entry points of installed packages.

Nothing is imported before it is asked for, and no list has to be kept.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from types import ModuleType
from typing import Any

from unbackdoor.configured import Configured
from unbackdoor.defence import TrainingDefence
from unbackdoor.errors import UnknownName
from unbackdoor.kit import TaskKit
from unbackdoor.purifier import Purifier

__all__ = [
    "card",
    "classes_in",
    "configured",
    "defence",
    "defence_names",
    "kit",
    "method",
    "method_names",
    "task_names",
    "unknown",
]

_METHODS = "unbackdoor.methods"
_DEFENCES = "unbackdoor.defences"
_TASKS = "unbackdoor.tasks"


def unknown(kind: str, given: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that nobody has: what was given, what there is, what may have been meant."""
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UnknownName(f"no {kind} {given!r}. Known: {', '.join(names) or 'none'}.{hint}")


def classes_in(package: ModuleType, base: type) -> dict[str, type[Any]]:
    """Concrete subclasses of ``base`` in a package's folders and modules, by their ``name``, sorted."""
    found: dict[str, type[Any]] = {}
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        module = importlib.import_module(info.name)
        for cls in vars(module).values():
            local = inspect.isclass(cls) and cls.__module__.startswith(info.name)
            if local and issubclass(cls, base) and not inspect.isabstract(cls) and "name" in vars(cls):
                found[cls.name] = cls
    return dict(sorted(found.items()))


def _plugins(group: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            owners = " and ".join(sorted(str(p.dist.name) if p.dist else p.value for p in (other, point)))
            raise UnknownName(f"the name {point.name!r} in {group} is claimed by {owners}; uninstall one of them.")
    return found


def method_names() -> list[str]:
    """Names of all methods, built in and installed."""
    return _names(_METHODS, Purifier)


def method(name: str) -> type[Purifier]:
    """The class of the method ``name``.

    Raises:
        UnknownName: There is none.
    """
    cls: type[Purifier] = _found("method", name, _METHODS, Purifier)
    return cls


def defence_names() -> list[str]:
    """Names of all defences that train, built in and installed."""
    return _names(_DEFENCES, TrainingDefence)


def defence(name: str) -> type[TrainingDefence]:
    """The class of the defence ``name``, which trains from data that may be poisoned.

    Raises:
        UnknownName: There is none.
    """
    cls: type[TrainingDefence] = _found("defence", name, _DEFENCES, TrainingDefence)
    return cls


def configured(name: str) -> type[Configured]:
    """The method or the defence ``name``, which share cards and commands' help.

    Raises:
        UnknownName: There is neither.
    """
    if name in defence_names():
        return defence(name)
    if name not in method_names():
        raise unknown("method or defence", name, [*method_names(), *defence_names()])
    return method(name)


def _names(group: str, base: type) -> list[str]:
    return sorted({*_built_in(group, base), *_plugins(group)})


def _found(kind: str, name: str, group: str, base: type) -> Any:
    built_in, plugins = _built_in(group, base), _plugins(group)
    if name in built_in:
        return built_in[name]
    if name in plugins:
        return plugins[name].load()
    raise unknown(kind, name, {*built_in, *plugins})


def _built_in(group: str, base: type) -> dict[str, type[Any]]:
    return classes_in(importlib.import_module(group), base)


def card(name: str) -> str:
    """The README of the method or defence ``name``, as Markdown.

    Raises:
        UnknownName: There is none, or it ships no card.
    """
    package = configured(name).__module__.rpartition(".")[0]
    path = files(package) / "README.md"
    if not path.is_file():
        raise UnknownName(f"{name!r} ships no card; its package {package} has no README.md.")
    return path.read_text(encoding="utf-8")


def task_names() -> list[str]:
    """Names of the installed tasks; imports none of them."""
    return sorted(_plugins(_TASKS))


def kit(name: str) -> TaskKit:
    """The `TaskKit` of the installed task ``name``.

    Raises:
        UnknownName: No installed package offers it.
    """
    plugins = _plugins(_TASKS)
    if name not in plugins:
        error = unknown("task", name, plugins)
        raise UnknownName(f'{error} Install a task package, for example: pip install "unbackdoor[image]".')
    loaded: TaskKit = plugins[name].load()
    return loaded
