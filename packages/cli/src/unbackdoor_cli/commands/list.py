"""``unbackdoor list``: what there is, by name."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from unbackdoor_cli import flags

if TYPE_CHECKING:
    from rich.console import RenderableType

    from unbackdoor.kit import TaskKit


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
        Kind | None, typer.Argument(help="What to list; everything if left out.", show_default=False)
    ] = None,
    json: flags.Json = False,
    verbose: flags.Verbose = False,
) -> None:
    """List methods, defences, tasks, attacks, models and data sets."""
    from unbackdoor.registry import kit, task_names
    from unbackdoor_cli.console import Output
    from unbackdoor_cli.tables import names

    output = Output(as_json=json)
    kinds = [kind] if kind else list(Kind)
    payload: dict[str, object] = {}
    shown: list[RenderableType] = []
    for one in kinds:
        if one in _OF_THE_REGISTRY:
            rows = _OF_THE_REGISTRY[one]()
            payload[one.value] = rows
            shown += ["", names(one.value.capitalize(), rows)]
            continue
        by_task = {task: _OF_A_KIT[one](kit(task)) for task in task_names()}
        payload[one.value] = by_task
        for task, rows in by_task.items():
            shown += ["", names(f"{one.value.capitalize()} of the task {task}", rows)]
    if not task_names():
        output.note('no task package is installed; for images: pip install "unbackdoor[image]"')
    output.result(payload, *shown[1:])


def _first_line(thing: object) -> str:
    text = (thing.__doc__ or "").strip()
    return "" if text.startswith(f"{getattr(thing, '__name__', '')}(") else text.partition("\n")[0].replace("``", "")


def _methods() -> dict[str, str]:
    from unbackdoor.registry import method, method_names

    return {name: _first_line(method(name)) for name in method_names()}


def _defences() -> dict[str, str]:
    from unbackdoor.registry import defence, defence_names

    return {name: _first_line(defence(name)) for name in defence_names()}


def _tasks() -> dict[str, str]:
    import sys

    from unbackdoor.registry import kit, task_names

    return {name: _first_line(sys.modules[kit(name).task.__module__]) for name in task_names()}


def _attacks(kit: TaskKit) -> dict[str, str]:
    """A line for each, with what a user must know before choosing one: labels, and whether the training is its own."""
    lines = {}
    for name, cls in kit.attacks.items():
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
