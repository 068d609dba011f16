"""``unbackdoor list``: what there is, by name."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from unbackdoor_cli import flags

if TYPE_CHECKING:
    from rich.console import RenderableType

    from unbackdoor.attacker.kit import TaskKit


class Kind(StrEnum):
    """What can be listed."""

    methods = "methods"
    defences = "defences"
    tasks = "tasks"
    attacks = "attacks"
    models = "models"
    data = "data"


def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]",
            help="What to list: methods, defences, tasks, attacks, models or data; everything if left out.",
            show_default=False,
        ),
    ] = None,
    json: flags.Json = False,
    verbose: flags.Verbose = False,
) -> None:
    """List methods, defences, tasks, attacks, models and data sets."""
    from unbackdoor.registry import task_names, unknown
    from unbackdoor_cli.console import Output
    from unbackdoor_cli.tables import names

    output = Output(as_json=json)
    known = [one.value for one in Kind]
    if kind is not None and kind not in known:
        raise unknown("kind of thing to list", kind, known)
    kinds = [Kind(kind)] if kind else list(Kind)
    payload: dict[str, object] = {}
    shown: list[RenderableType] = []
    for one in kinds:
        if one in _OF_THE_REGISTRY:
            rows = _OF_THE_REGISTRY[one]()
            payload[one.value] = rows
            shown += ["", names(one.value.capitalize(), rows)]
            continue
        by_task = {task: _rows(one, task) for task in task_names()}
        payload[one.value] = by_task
        for task, rows in by_task.items():
            shown += ["", names(f"{one.value.capitalize()} of the task {task}", rows)]
    if not task_names():
        output.note('no task package is installed; for images: pip install "unbackdoor[image]"')
    output.result(payload, *shown[1:])


def _rows(kind: Kind, task: str) -> dict[str, str]:
    from unbackdoor.errors import UnknownName
    from unbackdoor.registry import kit

    try:
        return _OF_A_KIT[kind](kit(task))
    except UnknownName as error:
        return {task: str(error)}


def _line_of(look: Callable[[], object]) -> str:
    """The first line of a thing's docstring; of a package that cannot be imported, what is wrong with it."""
    from unbackdoor.errors import UnknownName

    try:
        return _first_line(look())
    except UnknownName as error:
        return str(error)


def _first_line(thing: object) -> str:
    text = (thing.__doc__ or "").strip()
    return "" if text.startswith(f"{getattr(thing, '__name__', '')}(") else text.partition("\n")[0].replace("``", "")


def _methods() -> dict[str, str]:
    from unbackdoor.registry import method, method_names

    return {name: _line_of(partial(method, name)) for name in method_names()}


def _defences() -> dict[str, str]:
    from unbackdoor.registry import defence, defence_names

    return {name: _line_of(partial(defence, name)) for name in defence_names()}


def _tasks() -> dict[str, str]:
    import sys

    from unbackdoor.registry import kit, task_names

    return {name: _line_of(lambda name=name: sys.modules[kit(name).task.__module__]) for name in task_names()}  # type: ignore[misc]


def _attacks(kit: TaskKit) -> dict[str, str]:
    """A line for each, with what a user must know before choosing one: labels, and whether the training is its own."""
    from unbackdoor.errors import UnknownName

    lines = {}
    for name in kit.attacks:
        try:
            cls = kit.attacks[name]
        except UnknownName as error:
            lines[name] = str(error)
            continue
        maps = cls.maps_all_to_all and not cls.clean_label
        traits = ["clean label"] if cls.clean_label else []
        traits += ["all to all" if cls.all_to_all else "all_to_all=true" if maps else "to one class only"]
        traits += ["takes part in the training"] if cls.needs_training else []
        lines[name] = f"{_first_line(cls)} ({'; '.join(traits)})"
    return lines


_OF_THE_REGISTRY: dict[Kind, Callable[[], dict[str, str]]] = {
    Kind.methods: _methods,
    Kind.defences: _defences,
    Kind.tasks: _tasks,
}
_OF_A_KIT: dict[Kind, Callable[[TaskKit], dict[str, str]]] = {
    Kind.attacks: _attacks,
    Kind.models: lambda kit: dict(kit.models),
    Kind.data: lambda kit: {name: _first_line(loader) for name, loader in kit.data.items()},
}
