"""Names to things: methods are the folders of ``methods/``, tasks and further attacks are entry points of packages.

Nothing is imported before it is asked for, and no list has to be kept.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from importlib.metadata import EntryPoint, distributions
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import TaskKit
from unbackdoor.defender.defence import TrainingDefence
from unbackdoor.defender.purifier import Purifier
from unbackdoor.errors import BadOption, UnknownName
from unbackdoor.options import Configured
from unbackdoor.spelling import did_you_mean
from unbackdoor.task import Task

__all__ = [
    "as_method",
    "as_task",
    "card",
    "check_seed",
    "classes_in",
    "configured",
    "defence",
    "defence_names",
    "kit",
    "method",
    "method_names",
    "package_of",
    "task_names",
    "unknown",
]

_METHODS = "unbackdoor.methods"
_DEFENCES = "unbackdoor.defences"
_TASKS = "unbackdoor.tasks"
_ATTACKS = "unbackdoor.attacks"
_FOLDERS = {_METHODS: "unbackdoor.defender.methods", _DEFENCES: "unbackdoor.defender.defences"}
_GROUPS = (_METHODS, _DEFENCES, _TASKS, _ATTACKS)
_NO_CARD = "Its package has no README.md in the folder of the class, so this is made from the class itself.\n"


def unknown(kind: str, given: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that nobody has: what was given, what there is, what may have been meant."""
    names = sorted(known)
    return UnknownName(f"no {kind} {given!r}. Known: {', '.join(names) or 'none'}.{did_you_mean(given, names)}")


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


def entry_points(group: str) -> list[EntryPoint]:
    """What installed packages offer under ``group``, of two of one name the first on the path.

    What lies in the current folder is not installed, though ``python -m`` looks there. Packages are looked for once for
    each path of modules that there is in this process.
    """
    installed = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    here = {Path.cwd()} - installed
    return [p for p in _offered(tuple(one for one in sys.path if one and Path(one) not in here)) if p.group == group]


@lru_cache(maxsize=8)
def _offered(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    found: dict[str, list[EntryPoint]] = {}
    for package in distributions(path=list(path)):
        points = [point for point in package.entry_points if point.group in _GROUPS]
        if points:
            found.setdefault(str(package.name), points)
    return tuple(point for points in found.values() for point in points)


def _plugins(group: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            owners = " and ".join(sorted(map(_owner, (other, point))))
            raise UnknownName(f"the name {point.name!r} in {group} is claimed by {owners}; uninstall one of them.")
    return found


def _owner(point: EntryPoint) -> str:
    return str(point.dist.name) if point.dist else point.value


def _loaded(point: EntryPoint, kind: str, base: type, what: str) -> Any:
    """What an installed package offers, if it is what its group is for; its own faults are told as its own."""
    try:
        found = point.load()
    except Exception as error:
        raise UnknownName(
            f"the {kind} {point.name!r} of the installed package {_owner(point)} cannot be imported "
            f"({type(error).__name__}: {error}); mend, update or uninstall that package."
        ) from error
    fits = isinstance(found, base) if base is TaskKit else inspect.isclass(found) and issubclass(found, base)
    if not fits:
        raise UnknownName(
            f"the {kind} {point.name!r} of the installed package {_owner(point)} is {point.value}, which is no {what}; "
            "update or uninstall that package."
        )
    return found


class _Attacks(Mapping[str, type[Attack]]):
    """Attacks by name: a kit's own, and those of other packages, which are imported when they are asked for."""

    def __init__(self, own: Mapping[str, type[Attack]], others: Mapping[str, EntryPoint]) -> None:
        self._own, self._others = own, others

    def __getitem__(self, name: str) -> type[Attack]:
        if name in self._own or name not in self._others:
            return self._own[name]
        cls: type[Attack] = _loaded(self._others[name], "attack", Attack, "subclass of unbackdoor.Attack")
        return cls

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._own, *self._others}))

    def __len__(self) -> int:
        return len({*self._own, *self._others})


def _further_attacks(task: str, own: Iterable[str]) -> dict[str, EntryPoint]:
    """Entry points named ``TASK.NAME``, by ``NAME``.

    Raises:
        UnknownName: One has a name that the kit's own attacks have.
    """
    found = {}
    for full, point in _plugins(_ATTACKS).items():
        owner, _, name = full.partition(".")
        if owner != task or not name:
            continue
        if name in own:
            raise UnknownName(
                f"the installed package {_owner(point)} offers an attack {name!r}, but the task {task!r} has one of "
                "that name itself; uninstall that package or rename its attack."
            )
        found[name] = point
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
        return _loaded(plugins[name], kind, base, f"subclass of {base.__module__}.{base.__name__}")
    raise unknown(kind, name, {*built_in, *plugins})


def _built_in(group: str, base: type) -> dict[str, type[Any]]:
    return classes_in(importlib.import_module(_FOLDERS[group]), base)


def card(name: str) -> str:
    """The README of the method or defence ``name``, as Markdown; docstring and options where its package has none.

    Raises:
        UnknownName: There is none.
    """
    cls = configured(name)
    module = importlib.import_module(cls.__module__)
    package = module.__package__ or ""
    if package:
        path = files(package) / "README.md"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    rows = [f"- `{f.name}` (`{f.default}`): {f.metadata.get('help', '')}" for f in fields(cls)]
    return "\n".join([f"# {name}", "", inspect.getdoc(cls) or "", "", "## Options", "", *rows, "", _NO_CARD])


def task_names() -> list[str]:
    """Names of the installed tasks; imports none of them."""
    return sorted(_plugins(_TASKS))


def kit(name: str) -> TaskKit:
    """The `TaskKit` of the installed task ``name``, with the attacks that other packages offer for it.

    Those are entry points of the group ``unbackdoor.attacks`` named ``TASK.NAME``, each a subclass of `Attack`.

    Raises:
        UnknownName: No installed package offers it.
    """
    plugins = _plugins(_TASKS)
    if name not in plugins:
        error = unknown("task", name, plugins)
        raise UnknownName(f'{error} Install a task package, for example: pip install "unbackdoor[image]".')
    loaded: TaskKit = _loaded(plugins[name], "task", TaskKit, "unbackdoor.attacker.kit.TaskKit")
    others = _further_attacks(name, loaded.attacks)
    return replace(loaded, attacks=_Attacks(loaded.attacks, others)) if others else loaded


def package_of(task: str) -> tuple[str, str] | None:
    """Name and version of the installed package that offers the task; None where it does not say."""
    point = _plugins(_TASKS).get(task)
    return (point.dist.name, point.dist.version) if point is not None and point.dist else None


def as_method(given: Any, preset: str | None = None, options: Mapping[str, Any] | None = None) -> Purifier:
    """The method that is meant by a name, by a `Purifier` or by the class of one.

    Args:
        given: One of the three.
        preset: Named options, for a name or a class.
        options: Over the preset, for a name or a class.

    Raises:
        UnknownName: No method has this name.
        BadOption: It is something else, or a `Purifier` is given options once more.
    """
    options = options or {}
    if isinstance(given, Purifier):
        if options or preset is not None:
            raise BadOption("options and preset go with a method's name; give them to the Purifier itself instead.")
        return given
    if isinstance(given, str):
        return method(given).make(preset, **options)
    if not inspect.isclass(given) or not issubclass(given, Purifier):
        raise BadOption(f"method is {_called(given)}; give the name of a method, such as 'nft', or a Purifier.")
    if inspect.isabstract(given) or not isinstance(getattr(given, "name", None), str):
        raise BadOption(
            f"method is {_called(given)}, which is not complete: a Purifier has a name and writes _purify. Give the "
            "name of a method, such as 'nft'."
        )
    return given.make(preset, **options)


def as_task(given: Any) -> Task:
    """The task that is meant by the name of an installed package, by a `Task` or by the class of one.

    Raises:
        UnknownName: No package has this name.
        BadOption: It is something else, or a class that cannot be made without options.
    """
    if isinstance(given, Task):
        return given
    if isinstance(given, str):
        return kit(given).task()
    if not inspect.isclass(given) or not issubclass(given, Task):
        raise BadOption(f"task is {_called(given)}; give the name of a task package, such as 'image', or a Task.")
    try:
        return given()
    except TypeError as error:
        raise BadOption(
            f"task is {_called(given)}, which cannot be made without options ({error}); make it."
        ) from error


def check_seed(seed: Any) -> None:
    """Refuse what torch's generators do not take as a seed.

    Raises:
        BadOption: It is no whole number from 0 to 2^63 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise BadOption(f"seed is {seed!r}; it must be a whole number from 0 to 2^63 - 1.")


def _called(thing: Any) -> str:
    return f"the class {thing.__name__}" if inspect.isclass(thing) else f"of type {type(thing).__name__}"
