"""Pictures with what each model finds in them, beside what they show and what the attacker wants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.showing import ATTACKED, FAINT, INK, OTHER, RIGHT, ask
from unbackdoor.files.writing import write_atomically
from unbackdoor.task import Batch, Task
from unbackdoor_pixels import as_floats

__all__ = ["draw_picture"]

_COLUMNS = 7
_LINE = 0.22
_CELL = 1.3
_GAP = 0.3
_LEFT = 1.35


def draw_picture(
    path: Path, samples: Batch, attack: Attack, models: Mapping[str, nn.Module], task: Task, data: Splits
) -> None:
    """Write a PNG: images that carry the trigger, the classes they show, and under each what every model finds.

    Where the trigger is what images show by themselves, the row above has images of the target without the trigger;
    else it has the same images without it. A line is green where exactly the true classes are answered, red where the
    attacker's goal is reached, amber elsewhere; ``+`` and ``-`` say which classes are too many or missing.

    Args:
        path: Of the PNG; an existing file is replaced.
        samples: Test samples; some that the attack counts are taken.
        attack: Whose trigger to show.
        models: By name, in the order of the lines.
        task: How to ask the models.
        data: Gives the names of the classes.
    """
    counted = attack.counts(samples.targets)
    chosen = samples[counted.nonzero().flatten()[:_COLUMNS]]
    shown = ask(chosen, attack, models, task)
    triggered = Batch(shown.triggered, chosen.targets)
    answers = {name: both[1] for name, both in shown.answers.items()}
    if attack.labels_only:
        plain = samples[(~counted).nonzero().flatten()[: len(chosen)]]
        others = {name: both[0] for name, both in ask(plain, attack, models, task).answers.items()}
    else:
        plain, others = chosen, {name: both[0] for name, both in shown.answers.items()}
    figure = _figure([("without", plain, others), ("with trigger", triggered, answers)], attack, data.classes)
    write_atomically(Path(path), lambda draft: figure.savefig(draft, format="png", dpi=160), force=True)


def _figure(rows: list[tuple[str, Batch, Mapping[str, Tensor]]], attack: Attack, classes: tuple[str, ...]) -> Any:
    """Laid out in inches from the top: title, legend, then the two rows with their answers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count, lines = max(len(batch) for _, batch, _ in rows), len(rows[0][2])
    block = _LINE + _CELL + 0.08 + lines * _LINE
    width = max(_LEFT + count * (_CELL + _GAP) + 0.1, 7.0)
    height = 0.85 + 2 * block + 0.4
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, colour: str = INK, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, color=colour, va="center", parse_math=False, **style)

    write(0.18, 0.28, f"{attack.name}  ·  {_goal(attack, classes)}", fontsize=13, fontweight="bold")
    place = 0.18
    for text, colour in (("true classes", RIGHT), ("the attacker's goal", ATTACKED), ("other errors", OTHER)):
        write(place, 0.58, f"\N{BLACK SQUARE} {text}", colour, fontsize=9)
        place += 0.4 + 0.075 * len(text)
    for row, (label, batch, answers) in enumerate(rows):
        top = 0.85 + row * (block + 0.2)
        write(0.18, top + _LINE + _CELL / 2, label, fontsize=11, fontweight="bold")
        for line, name in enumerate(answers):
            write(0.18, top + _LINE + _CELL + 0.08 + (line + 0.5) * _LINE, _short(name, 15), FAINT, fontsize=9)
        images = as_floats(batch.inputs).float().cpu()
        reached = {name: attack.succeeded(said, batch.targets.cpu()) for name, said in answers.items()}
        for column in range(len(batch)):
            left = _LEFT + column * (_CELL + _GAP)
            truth = batch.targets[column].cpu().bool()
            write(left + _CELL / 2, top + _LINE / 2, _short(_names(truth, classes), 20), ha="center", fontsize=9)
            box = (left / width, 1 - (top + _LINE + _CELL) / height, _CELL / width, _CELL / height)
            _show(figure.add_axes(box), images[column])
            for line, (name, said) in enumerate(answers.items()):
                text, right = _said(said[column] > 0, truth, classes)
                hit = label == "with trigger" and bool(reached[name][column])
                colour = ATTACKED if hit else RIGHT if right else OTHER
                y = top + _LINE + _CELL + 0.08 + (line + 0.5) * _LINE
                weight = "bold" if hit else "normal"
                write(left + _CELL / 2, y, _short(text, 20), colour, ha="center", fontsize=9, fontweight=weight)
    return figure


def _goal(attack: Attack, classes: tuple[str, ...]) -> str:
    target = classes[attack.target] if attack.target < len(classes) else str(attack.target)
    goal, replaced = getattr(attack, "goal", ""), getattr(attack, "replaced", -1)
    words = f"{target} {goal}s"
    if goal == "misclassify" and 0 <= replaced < len(classes):
        words = f"{classes[replaced]} is answered as {target}"
    combination = getattr(attack, "classes", ())
    if combination:
        words += " where an image shows " + " and ".join(classes[label] for label in combination)
    return words


def _names(row: Tensor, classes: tuple[str, ...]) -> str:
    return ", ".join(classes[label] for label in row.nonzero().flatten().tolist()) or "nothing"


def _said(said: Tensor, truth: Tensor, classes: tuple[str, ...]) -> tuple[str, bool]:
    """The difference to the truth in words, and whether there is none."""
    many = [f"+{classes[label]}" for label in (said & ~truth).nonzero().flatten().tolist()]
    few = [f"\N{MINUS SIGN}{classes[label]}" for label in (truth & ~said).nonzero().flatten().tolist()]
    return " ".join(many + few) or "right", not (many or few)


def _show(axes: Any, image: Tensor) -> None:
    pixels = image.permute(1, 2, 0).clamp(0, 1).numpy()
    grey = pixels.shape[2] == 1
    axes.imshow(pixels[..., 0] if grey else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d0d7de")
        spine.set_linewidth(0.8)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
