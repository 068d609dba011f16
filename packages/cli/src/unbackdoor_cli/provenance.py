"""What was purified or trained, for the report: files and their hashes, architecture, normalisation, classes."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer

import unbackdoor
from unbackdoor.registry import package_of
from unbackdoor.task import Batch, Task
from unbackdoor.tree import leaves

__all__ = ["command", "digest", "subject_facts"]

_BLOCK = 1 << 20


def subject_facts(
    *,
    task: Task,
    task_name: str,
    samples: Batch,
    classes: Sequence[str] | None,
    ctx: typer.Context,
    **named: Any,
) -> dict[str, Any]:
    """The mapping `unbackdoor.Report.subject`.

    Args:
        task: As it was used, with its normalisation.
        task_name: Under which it is installed.
        samples: The clean samples.
        classes: Names in label order; None where they have none.
        ctx: Of the command.
        **named: Further entries, such as the source and its hash.
    """
    first = leaves(samples.inputs)
    package = package_of(task_name)
    return {
        **named,
        "task_options": _options(task),
        "samples": len(samples),
        "input_shapes": [list(leaf.shape[1:]) for leaf in first],
        "classes": None if classes is None else list(classes),
        "unbackdoor": unbackdoor.__version__,
        "task_package": None if package is None else " ".join(package),
        "libraries": _versions("torch", "torchvision", "timm", "transformers"),
        "command": command(ctx),
    }


def digest(path: Path) -> str | dict[str, str]:
    """SHA-256 of a file; of a folder's regular files, by name."""
    if path.is_dir():
        return {one.name: _sha256(one) for one in sorted(path.iterdir()) if one.is_file()}
    return _sha256(path)


def command(ctx: typer.Context) -> str:
    """The command line as it was typed."""
    words = ctx.find_root().obj
    return shlex.join(["unbackdoor", *map(str, words)]) if isinstance(words, list) else ""


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _options(task: Task) -> Mapping[str, Any]:
    """The task's fields, its normalisation among them."""
    return {name: _plain(getattr(task, name)) for name in getattr(task, "__dataclass_fields__", ())}


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return str(value)


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
