"""Flags that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Checkpoint",
    "DataOptions",
    "DataPath",
    "Device",
    "Force",
    "Json",
    "Mean",
    "Model",
    "ModelOptions",
    "NumClasses",
    "Seed",
    "Size",
    "Std",
    "Task",
    "TaskOptions",
    "UserData",
    "Verbose",
]

_MODEL = "Model and data"
_HOW = "How it runs"

Checkpoint = Annotated[Path, typer.Argument(help="A file of weights, or a victim's folder.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.", rich_help_panel=_HOW)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.", rich_help_panel=_HOW)]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.", rich_help_panel=_HOW)]
Seed = Annotated[int, typer.Option(metavar="N", help="Of every random draw.", min=0, rich_help_panel=_HOW)]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="cpu, cuda, cuda:1, mps, or auto: a GPU where there is one.", rich_help_panel=_HOW
    ),
]
Task = Annotated[
    str, typer.Option(metavar="NAME", help="Kind of problem; see: unbackdoor list tasks.", rich_help_panel=_MODEL)
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Architecture: a name of `unbackdoor list models`, or my_module:function of your own.",
        rich_help_panel=_MODEL,
    ),
]
NumClasses = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Number of the model's outputs; taken from --data if left out.", rich_help_panel=_MODEL
    ),
]
UserData = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Your labelled clean samples: a folder of class folders, or a file that the task package reads.",
        rich_help_panel=_MODEL,
    ),
]
DataPath = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Where a victim's data set lies, if not where it was.", rich_help_panel=_MODEL),
]
ModelOptions = Annotated[
    list[str] | None,
    typer.Option("--model-option", metavar="K=V", help="Option of the architecture; repeat.", rich_help_panel=_MODEL),
]
DataOptions = Annotated[
    list[str] | None,
    typer.Option("--data-option", metavar="K=V", help="Option of the data reader; repeat.", rich_help_panel=_MODEL),
]
TaskOptions = Annotated[
    list[str] | None,
    typer.Option("--task-option", metavar="K=V", help="Option of the task; repeat.", rich_help_panel=_MODEL),
]
Size = Annotated[
    str | None,
    typer.Option(metavar="N", help="Short for --data-option size=N.", rich_help_panel=_MODEL),
]
Mean = Annotated[
    str | None,
    typer.Option(metavar="A,B,C", help="Short for --task-option mean=A,B,C.", rich_help_panel=_MODEL),
]
Std = Annotated[
    str | None,
    typer.Option(metavar="A,B,C", help="Short for --task-option std=A,B,C.", rich_help_panel=_MODEL),
]
