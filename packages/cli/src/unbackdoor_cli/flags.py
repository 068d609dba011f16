"""Flags that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AllowDrop",
    "Anyway",
    "Checkpoint",
    "Classes",
    "DataOptions",
    "DataPath",
    "Device",
    "Entry",
    "Force",
    "Json",
    "Limits",
    "MaxLoss",
    "Mean",
    "Model",
    "ModelOptions",
    "NumClasses",
    "Seed",
    "Size",
    "Std",
    "Task",
    "TaskOptions",
    "Trust",
    "UserData",
    "Verbose",
]

_MODEL = "Model and data"
_HOW = "How it runs"

Checkpoint = Annotated[
    Path,
    typer.Argument(help="A file of weights, or a victim: a folder that `unbackdoor attack` made.", show_default=False),
]
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
        help="Your labelled clean samples: a folder with one folder for each class, or a file of samples and labels.",
        rich_help_panel=_MODEL,
    ),
]
DataPath = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Where the data set of a victim (a folder that `unbackdoor attack` made) lies.",
        rich_help_panel=_MODEL,
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="You made this victim or trust whoever did: its card may name your own code and files outside its folder.",
        rich_help_panel=_MODEL,
    ),
]
Entry = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which entry of the checkpoint holds the weights, where several do, such as state_dict or model_ema.",
        rich_help_panel=_MODEL,
    ),
]
ModelOptions = Annotated[
    list[str] | None,
    typer.Option("--model-option", metavar="K=V", help="Option of the architecture; repeat.", rich_help_panel=_MODEL),
]
DataOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--data-option",
        metavar="K=V",
        help="Option of the data reader; repeat. A wrong one lists all.",
        rich_help_panel=_MODEL,
    ),
]
TaskOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--task-option",
        metavar="K=V",
        help="Option of the task; repeat. A wrong one lists all.",
        rich_help_panel=_MODEL,
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Height and width in pixels that samples are read in. Short for --data-option size=N.",
        rich_help_panel=_MODEL,
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C",
        help="Names of all classes in the order of the model's outputs, those without samples too. Short for "
        "--data-option classes=A,B,C.",
        rich_help_panel=_MODEL,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C",
        help="Mean of each channel, for pixels from 0 to 1, that the model expects to be taken off its inputs: the "
        "first numbers of Normalize(...) in the code that trained it, or mean in its config. ImageNet: "
        "0.485,0.456,0.406. Leave it out where the model normalises by itself. Short for --task-option mean=A,B,C.",
        rich_help_panel=_MODEL,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,C",
        help="What it then expects them to be divided by: the second numbers of Normalize(...), or std in its config. "
        "ImageNet: 0.229,0.224,0.225. Short for --task-option std=A,B,C.",
        rich_help_panel=_MODEL,
    ),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="What a file may ask for before it is refused: memory (bytes), ratio (of packed files), pixels (of an "
        "image), frames (of a video), classes, text (bytes); repeat.",
        rich_help_panel=_HOW,
    ),
]
AllowDrop = Annotated[
    bool,
    typer.Option(
        "--allow-drop",
        help="Keep a result that costs more clean accuracy than --max-clean-drop of the method allows; else the given "
        "weights are written again.",
        rich_help_panel=_HOW,
    ),
]
Anyway = Annotated[
    bool,
    typer.Option(
        "--anyway",
        help="Go on where the checks before and after the work would stop; the report then says what spoke against it.",
        rich_help_panel=_HOW,
    ),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(
        metavar="POINTS",
        min=0,
        help=r"Accuracy on the clean samples that the result may have lost; more is refused. \[default: 20]",
        rich_help_panel=_HOW,
    ),
]
