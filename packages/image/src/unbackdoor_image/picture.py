"""A contact sheet: what the trigger looks like, and what each model answers with and without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.showing import ATTACKED, FAINT, INK, OTHER, RIGHT, ask, one_of_each_class
from unbackdoor.files.writing import write_atomically
from unbackdoor.task import Batch, Task
from unbackdoor_image.task import as_floats

__all__ = ["draw_picture"]

_COLUMNS = 9
_LINE = 0.21
_CELL = 1.1
_GAP = 0.14
_LEFT = 1.35


@dataclass(frozen=True)
class _Sheet:
    """What is drawn: images as floats ``(n, channels, height, width)`` and the answers, clean and triggered."""

    clean: Tensor
    triggered: Tensor
    truths: Tensor
    wanted: Tensor
    answers: Mapping[str, tuple[Tensor, Tensor]]
    classes: tuple[str, ...]


def draw_picture(
    path: Path, samples: Batch, attack: Attack, models: Mapping[str, nn.Module], task: Task, data: Splits
) -> None:
    """Write a PNG: clean images above, the same with the trigger below, the models' answers under each.

    An answer is green where it is the true class, red where it is the class that the attacker wants, amber elsewhere.

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
        clean=as_floats(chosen.inputs).float().cpu(),
        triggered=as_floats(shown.triggered).float().cpu(),
        truths=chosen.targets.cpu(),
        wanted=attack.retarget(chosen.targets).cpu(),
        answers={name: (both[0].argmax(dim=1), both[1].argmax(dim=1)) for name, both in shown.answers.items()},
        classes=data.classes,
    )
    figure = _figure(sheet, attack)
    write_atomically(Path(path), lambda draft: figure.savefig(draft, format="png", dpi=160), force=True)


def _figure(sheet: _Sheet, attack: Attack) -> Any:
    """Lay the sheet out in inches from the top: title, legend, then the two rows with their answers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count, lines = len(sheet.truths), len(sheet.answers)
    block = _LINE + _CELL + 0.06 + lines * _LINE
    width = max(_LEFT + count * (_CELL + _GAP) + 0.1, 6.5)
    height = 0.85 + 2 * block + 0.3
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, colour: str = INK, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, color=colour, va="center", **style)

    kind = "every class becomes the next" if attack.all_to_all else f"target: {_name(sheet, attack.target)}"
    write(0.18, 0.28, f"{attack.name}  ·  {kind}", fontsize=13, fontweight="bold")
    place = 0.18
    for text, colour in (("true class", RIGHT), ("what the attacker wants", ATTACKED), ("another class", OTHER)):
        write(place, 0.58, f"\N{BLACK SQUARE} {text}", colour, fontsize=9)
        place += 0.38 + 0.066 * len(text)
    for row, (label, images) in enumerate((("clean", sheet.clean), ("with trigger", sheet.triggered))):
        top = 0.85 + row * (block + 0.2)
        write(0.18, top + _LINE + _CELL / 2, label, fontsize=11, fontweight="bold")
        for line, name in enumerate(sheet.answers):
            write(0.18, top + _LINE + _CELL + 0.06 + (line + 0.5) * _LINE, _short(name, 15), FAINT, fontsize=9)
        for column in range(count):
            left = _LEFT + column * (_CELL + _GAP)
            centre = left + _CELL / 2
            truth = _name(sheet, int(sheet.truths[column]))
            write(centre, top + _LINE / 2, _short(truth, 14), ha="center", fontsize=9)
            box = (left / width, 1 - (top + _LINE + _CELL) / height, _CELL / width, _CELL / height)
            _show(figure.add_axes(box), images[column])
            for line, both in enumerate(sheet.answers.values()):
                answer = int(both[row][column])
                text, colour = _short(_name(sheet, answer), 14), _colour(sheet, answer, column)
                weight = "bold" if colour == ATTACKED else "normal"
                y = top + _LINE + _CELL + 0.06 + (line + 0.5) * _LINE
                write(centre, y, text, colour, ha="center", fontsize=9, fontweight=weight)
    return figure


def _show(axes: Any, image: Tensor) -> None:
    pixels = image.permute(1, 2, 0).clamp(0, 1).numpy()
    axes.imshow(
        pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d0d7de")
        spine.set_linewidth(0.8)


def _colour(sheet: _Sheet, answer: int, column: int) -> str:
    if answer == int(sheet.truths[column]):
        return RIGHT
    return ATTACKED if answer == int(sheet.wanted[column]) else OTHER


def _name(sheet: _Sheet, label: int) -> str:
    return sheet.classes[label] if label < len(sheet.classes) else str(label)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
