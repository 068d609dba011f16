"""A contact sheet of clips: frames without and with the trigger, and what each model answers to both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.showing import ATTACKED, FAINT, INK, OTHER, RIGHT, ask, one_of_each_class
from unbackdoor.files.writing import write_atomically
from unbackdoor.task import Batch, Task
from unbackdoor_pixels import as_floats

__all__ = ["draw_picture"]

_ROWS = 4
_FRAMES = 6
_CELL = 0.82
_GAP = 0.05
_LINE = 0.19
_LEFT = 0.18
_NAMES = 1.1
_BETWEEN = 0.3
_TOP = 1.1


def draw_picture(
    path: Path, samples: Batch, attack: Attack, models: Mapping[str, nn.Module], task: Task, data: Splits
) -> None:
    """Write a PNG: a row for each clip, some frames as they are and the same with the trigger, answers below.

    An answer is green where it is the true class, red where it is the class that the attacker wants, amber elsewhere.

    Args:
        path: Of the PNG; an existing file is replaced.
        samples: Test samples; some that the attack counts are taken, of different classes.
        attack: Whose trigger to show.
        models: By name, in the order of the lines: ``backdoored``, ``nft``, ...
        task: How to ask the models.
        data: Gives the names of the classes.
    """
    chosen = one_of_each_class(samples, attack, _ROWS)
    shown = ask(chosen, attack, models, task)
    strips = [_frames(as_floats(clips).float().cpu()) for clips in (chosen.inputs, shown.triggered)]
    figure = _figure(strips, shown.answers, chosen.targets.cpu(), attack, data.classes)
    write_atomically(Path(path), lambda draft: figure.savefig(draft, format="png", dpi=130), force=True)


def _frames(clips: Tensor) -> Tensor:
    """Some frames of each clip, evenly, the first and the last among them."""
    count = clips.shape[1]
    return clips[:, torch.linspace(0, count - 1, min(_FRAMES, count)).round().long()]


def _figure(
    strips: list[Tensor],
    answers: Mapping[str, tuple[Any, Any]],
    truths: Tensor,
    attack: Attack,
    classes: tuple[str, ...],
) -> Any:
    """Lay the sheet out in inches from the top: title, legend, heads, then a block for each clip."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = strips[0].shape[1]
    strip = count * (_CELL + _GAP)
    block = _LINE * 1.3 + _CELL + 0.08 + len(answers) * _LINE + 0.2
    width = max(_LEFT + _NAMES + 2 * strip + _BETWEEN + 0.1, 6.5)
    height = _TOP + len(truths) * block + 0.1
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, colour: str = INK, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, color=colour, va="center", **style)

    lefts = (_LEFT + _NAMES, _LEFT + _NAMES + strip + _BETWEEN)
    wants = attack.retarget(truths)
    kind = "every class becomes the next" if attack.all_to_all else f"target: {_name(attack.target, classes)}"
    write(_LEFT, 0.26, f"{attack.name}  ·  {kind}", fontsize=13, fontweight="bold")
    place = _LEFT
    for text, colour in (("true class", RIGHT), ("what the attacker wants", ATTACKED), ("another class", OTHER)):
        write(place, 0.56, f"\N{BLACK SQUARE} {text}", colour, fontsize=9)
        place += 0.38 + 0.066 * len(text)
    for left, head in zip(lefts, ("clean", "with trigger"), strict=True):
        write(left, 0.9, f"{head}, {count} of the frames", fontsize=11, fontweight="bold")
    for row, truth in enumerate(truths.tolist()):
        top = _TOP + row * block
        for side, (left, clips) in enumerate(zip(lefts, strips, strict=True)):
            write(left, top + _LINE / 2, _name(truth, classes), fontsize=9, fontweight="bold")
            for column in range(count):
                x = left + column * (_CELL + _GAP)
                box = (x / width, 1 - (top + 1.3 * _LINE + _CELL) / height, _CELL / width, _CELL / height)
                _show(figure.add_axes(box), clips[row, column])
            for line, (name, both) in enumerate(answers.items()):
                y = top + 1.3 * _LINE + _CELL + 0.08 + (line + 0.5) * _LINE
                answer = int(both[side][row].argmax())
                share = float(both[side][row].float().softmax(dim=0)[answer])
                colour = RIGHT if answer == truth else ATTACKED if answer == int(wants[row]) else OTHER
                if side == 0:
                    write(_LEFT, y, _short(name, 14), FAINT, fontsize=9)
                weight = "bold" if colour == ATTACKED else "normal"
                write(left, y, f"{_name(answer, classes)}  ({share:.0%})", colour, fontsize=9, fontweight=weight)
    return figure


def _show(axes: Any, image: Tensor) -> None:
    pixels = image.permute(1, 2, 0).clamp(0, 1).numpy()
    grey = pixels.shape[2] == 1
    axes.imshow(pixels[..., 0] if grey else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d0d7de")
        spine.set_linewidth(0.8)


def _name(label: int, classes: tuple[str, ...]) -> str:
    return _short(classes[label] if label < len(classes) else str(label), 24)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
