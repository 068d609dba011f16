"""Which model and which samples a user names, and the flags that say so: the same for every command that opens them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from unbackdoor_cli import flags

__all__ = ["Named", "names_a_subject", "reads_files"]


@dataclass(frozen=True)
class Named:
    """The words of the command line that say which model and which samples."""

    source: Path
    task: str = "image"
    model: str | None = None
    num_classes: int | None = None
    data: Path | None = None
    data_path: Path | None = None
    attack_from: Path | None = None
    model_options: Sequence[str] = ()
    data_options: Sequence[str] = ()
    task_options: Sequence[str] = ()
    size: str | None = None
    classes: str | None = None
    mean: str | None = None
    std: str | None = None
    entry: str | None = None
    device: str = "auto"
    trust: bool = False

    def short_forms(self) -> tuple[list[str], list[str]]:
        """Data options and task options with the short flags spelt out."""
        data = [f"{name}={value}" for name, value in (("size", self.size), ("classes", self.classes)) if value]
        task = [f"{name}={value}" for name, value in (("mean", self.mean), ("std", self.std)) if value]
        return [*self.data_options, *data], [*self.task_options, *task]


def names_a_subject(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the flags of `Named` in the place of its parameter ``named``, which gets what they say."""
    own = inspect.signature(command, eval_str=True).parameters
    shared = inspect.signature(_named, eval_str=True).parameters
    taken: list[inspect.Parameter] = []
    for name, parameter in own.items():
        taken += list(shared.values()) if name == "named" else [parameter]

    @wraps(command)
    def run(**given: Any) -> None:
        words = {name: given.pop(name) for name in shared}
        command(named=_named(**words), **given)

    return _taking(run, taken)


def reads_files(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the flag ``--limit``, which holds for everything that it reads."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    limit = inspect.Parameter("limit", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=flags.Limits)
    place = next((at for at, parameter in enumerate(own) if parameter.name == "json"), len(own))

    @wraps(command)
    def run(**given: Any) -> None:
        from unbackdoor.files.reading import limited
        from unbackdoor_cli.options import limits, pairs

        with limited(**limits(pairs(given.pop("limit"), "--limit", "pixels=500000000"))):
            command(**given)

    return _taking(run, [*own[:place], limit, *own[place:]])


def _taking(run: Callable[..., None], taken: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """``run`` with a signature that the library of the command line reads its flags from."""
    del run.__wrapped__  # type: ignore[attr-defined]
    signature = inspect.Signature([parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in taken])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in taken}
    return run


def _named(
    checkpoint: flags.Checkpoint,
    task: flags.Task = "image",
    model: flags.Model = None,
    num_classes: flags.NumClasses = None,
    model_option: flags.ModelOptions = None,
    data: flags.UserData = None,
    data_option: flags.DataOptions = None,
    size: flags.Size = None,
    classes: flags.Classes = None,
    mean: flags.Mean = None,
    std: flags.Std = None,
    entry: flags.Entry = None,
    task_option: flags.TaskOptions = None,
    data_path: flags.DataPath = None,
    trust: flags.Trust = False,
    device: flags.Device = "auto",
) -> Named:
    return Named(
        source=checkpoint, task=task, model=model, num_classes=num_classes, data=data, data_path=data_path,
        model_options=model_option or (), data_options=data_option or (), task_options=task_option or (),
        size=size, classes=classes, mean=mean, std=std, entry=entry, device=device, trust=trust,
    )  # fmt: skip
