"""A sheet of clouds in three dimensions: what the trigger looks like, and what each model answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.showing import ATTACKED, FAINT, INK, OTHER, RIGHT, ask, one_of_each_class
from unbackdoor.files.writing import write_atomically
from unbackdoor.task import Batch, Task

__all__ = ["draw_picture", "draw_preview"]

_COLUMNS = 6
_LINE = 0.21
_CELL = 1.55
_GAP = 0.08
_LEFT = 1.35
_SHOWN = 700
"""Points drawn of a cloud at most; those of the trigger are all drawn."""


@dataclass(frozen=True)
class _Sheet:
    """What is drawn: clouds ``(n, points, 3)`` and the answers, clean and triggered."""

    clean: Tensor
    triggered: Tensor
    truths: Tensor
    wanted: Tensor
    answers: Mapping[str, tuple[Tensor, Tensor]]
    classes: tuple[str, ...]


def draw_picture(
    path: Path, samples: Batch, attack: Attack, models: Mapping[str, nn.Module], task: Task, data: Splits
) -> None:
    """Write a PNG: clean clouds above, the same with the trigger below, the models' answers under each.

    Points that the trigger put in are red; where it moves all of them, the cloud as it was is shown in grey. An answer
    is green where it is the true class, red where it is the class that the attacker wants, amber elsewhere.

    Args:
        path: Of the PNG; an existing file is replaced.
        samples: Test samples; some that the attack counts are taken, of different classes.
        attack: Whose trigger to show.
        models: By name, in the order of the lines: ``before``, ``nft``, ...
        task: How to ask the models.
        data: Gives the names of the classes.
    """
    chosen = one_of_each_class(samples, attack, _COLUMNS)
    shown = ask(chosen, attack, models, task)
    sheet = _Sheet(
        clean=chosen.inputs.float().cpu(),
        triggered=shown.triggered.float().cpu(),
        truths=chosen.targets.cpu(),
        wanted=attack.retarget(chosen.targets).cpu(),
        answers={name: (both[0].argmax(dim=1), both[1].argmax(dim=1)) for name, both in shown.answers.items()},
        classes=data.classes,
    )
    figure = _figure(sheet, attack)
    write_atomically(Path(path), lambda draft: figure.savefig(draft, format="png", dpi=140), force=True)


def draw_preview(path: Path, attacks: Sequence[Attack], samples: Batch) -> None:
    """Write a PNG: a few clouds above, and below them, a row for each of ``attacks``, the same with its trigger.

    Args:
        path: Of the PNG; an existing file is replaced.
        attacks: With whatever they have learned.
        samples: The first few are shown.
    """
    clouds = samples.inputs[:_COLUMNS].float().cpu()
    rows = [("clean", clouds, clouds)]
    for attack in attacks:
        triggered = attack.trigger(samples.inputs[:_COLUMNS], torch.Generator().manual_seed(0)).float().cpu()
        rows.append((attack.name, clouds, triggered))
    width = _LEFT + len(clouds) * (_CELL + _GAP) + 0.1
    height = 0.2 + len(rows) * (_CELL + 0.1)
    figure = _blank(width, height)
    for row, (name, before, after) in enumerate(rows):
        top = 0.1 + row * (_CELL + 0.1)
        figure.text(0.15 / width, 1 - (top + _CELL / 2) / height, name, color=INK, va="center", fontsize=11)
        for column in range(len(clouds)):
            left = _LEFT + column * (_CELL + _GAP)
            box = (left / width, 1 - (top + _CELL) / height, _CELL / width, _CELL / height)
            _show(figure.add_axes(box, projection="3d"), before[column], after[column])
    write_atomically(Path(path), lambda draft: figure.savefig(draft, format="png", dpi=140), force=True)


def _blank(width: float, height: float) -> Any:
    import mpl_toolkits.mplot3d  # noqa: F401 - registers the projection
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _figure(sheet: _Sheet, attack: Attack) -> Any:
    """Lay the sheet out in inches from the top: title, legend, then the two rows with their answers."""
    count, lines = len(sheet.truths), len(sheet.answers)
    block = _LINE + _CELL + 0.06 + lines * _LINE
    width, height = max(_LEFT + count * (_CELL + _GAP) + 0.1, 6.5), 0.85 + 2 * block + 0.3
    figure = _blank(width, height)

    def write(x: float, y: float, text: str, colour: str = INK, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, color=colour, va="center", **style)

    kind = "every class becomes the next" if attack.all_to_all else f"target: {_name(sheet, attack.target)}"
    write(0.18, 0.28, f"{attack.name}  ·  {kind}", fontsize=13, fontweight="bold")
    place = 0.18
    for text, colour in (("true class", RIGHT), ("what the attacker wants", ATTACKED), ("another class", OTHER)):
        write(place, 0.58, f"\N{BLACK SQUARE} {text}", colour, fontsize=9)
        place += 0.38 + 0.066 * len(text)
    for row, (label, clouds) in enumerate((("clean", sheet.clean), ("with trigger", sheet.triggered))):
        top = 0.85 + row * (block + 0.2)
        write(0.18, top + _LINE + _CELL / 2, label, fontsize=11, fontweight="bold")
        for line, name in enumerate(sheet.answers):
            write(0.18, top + _LINE + _CELL + 0.06 + (line + 0.5) * _LINE, _short(name, 15), FAINT, fontsize=9)
        for column in range(count):
            left = _LEFT + column * (_CELL + _GAP)
            centre = left + _CELL / 2
            truth = _name(sheet, int(sheet.truths[column]))
            write(centre, top + _LINE / 2, _short(truth, 18), ha="center", fontsize=9)
            box = (left / width, 1 - (top + _LINE + _CELL) / height, _CELL / width, _CELL / height)
            _show(figure.add_axes(box, projection="3d"), sheet.clean[column], clouds[column])
            for line, both in enumerate(sheet.answers.values()):
                answer = int(both[row][column])
                text, colour = _short(_name(sheet, answer), 18), _colour(sheet, answer, column)
                weight = "bold" if colour == ATTACKED else "normal"
                y = top + _LINE + _CELL + 0.06 + (line + 0.5) * _LINE
                write(centre, y, text, colour, ha="center", fontsize=9, fontweight=weight)
    return figure


def _show(axes: Any, before: Tensor, after: Tensor) -> None:
    moved = (before != after).any(dim=1)
    if bool(moved.float().mean() > 0.5):  # a trigger that moves the whole cloud
        _scatter(axes, before[:_SHOWN], "#d0d7de", 1.5)
        _scatter(axes, after[:_SHOWN], _depth_colours(after[:_SHOWN]), 3.0)
    else:
        kept = after[~moved][:_SHOWN]
        _scatter(axes, kept, _depth_colours(kept), 3.0)
        _scatter(axes, after[moved], ATTACKED, 7.0)
    reach = max(1.0, float(before.abs().max()), float(after.abs().max())) * 0.8
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
    axes.set_box_aspect((1, 1, 1), zoom=1.3)
    axes.view_init(elev=22, azim=-58)
    axes.set_axis_off()
    axes.patch.set_alpha(0.0)


def _scatter(axes: Any, cloud: Tensor, colour: Any, size: float) -> None:
    if len(cloud):
        axes.scatter(*cloud.T.numpy(), c=colour, s=size, linewidths=0, depthshade=False)


def _depth_colours(cloud: Tensor) -> Any:
    """Light far away and dark near by, as seen by the camera."""
    import matplotlib as mpl

    near = cloud @ torch.tensor([0.49, -0.79, 0.37])
    return mpl.colormaps["viridis_r"](0.15 + 0.7 * (near.clamp(-1, 1).numpy() + 1) / 2)


def _colour(sheet: _Sheet, answer: int, column: int) -> str:
    if answer == int(sheet.truths[column]):
        return RIGHT
    return ATTACKED if answer == int(sheet.wanted[column]) else OTHER


def _name(sheet: _Sheet, label: int) -> str:
    return sheet.classes[label] if label < len(sheet.classes) else str(label)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
