"""Sentences side by side: clean and triggered, and what each model says to both."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.showing import ATTACKED, FAINT, INK, OTHER, RIGHT, ask
from unbackdoor.files.writing import write_atomically
from unbackdoor.task import Batch, Task
from unbackdoor_translation.meters import texts
from unbackdoor_translation.outputs import says
from unbackdoor_translation.sequences import SOURCE, valid

__all__ = ["draw_picture", "excerpt"]

_SENTENCES = 4
_WIDTH, _LINE, _COLUMN = 13.0, 0.21, 62


def excerpt(
    samples: Batch, attack: Attack, models: Mapping[str, nn.Module], task: Task, data: Splits, count: int = _SENTENCES
) -> list[Mapping[str, str]]:
    """Some test sentences without and with trigger, the true answer, and every model's answers to both.

    Args:
        samples: Test samples; the first that the attack counts are taken.
        attack: Whose trigger to put on.
        models: By name, in the order of the rows.
        task: A `TranslationTask`.
        data: Not used; sentences are decoded by the task's tokeniser.
        count: Number of sentences.

    Returns:
        One row a line with the columns ``what``, ``clean`` and ``triggered``.
    """
    rows: list[Mapping[str, str]] = []
    for source, true, answers in _said(samples, attack, models, task, count):
        rows.append({"what": "source", "clean": source[0], "triggered": source[1]})
        rows.append({"what": "reference", "clean": true, "triggered": true})
        rows += [{"what": name, "clean": said[0], "triggered": said[1]} for name, said in answers.items()]
    return rows


def draw_picture(
    path: Path, samples: Batch, attack: Attack, models: Mapping[str, nn.Module], task: Task, data: Splits
) -> None:
    """Write a PNG with the rows of `excerpt`.

    An answer is green where it is the reference, red where it says what the attacker wants, by whole words as in ASR,
    amber elsewhere.
    """
    said = _said(samples, attack, models, task, _SENTENCES)
    wanted = _wanted(samples, attack, task)
    figure = _figure(said, wanted, attack)
    write_atomically(Path(path), lambda draft: figure.savefig(draft, format="png", dpi=140), force=True)


Said = list[tuple[tuple[str, str], str, dict[str, tuple[str, str]]]]


def _said(samples: Batch, attack: Attack, models: Mapping[str, nn.Module], task: Any, count: int) -> Said:
    chosen = attack.counts(samples.targets).nonzero().flatten()[:count]
    shown = samples[chosen]
    asked = ask(shown, attack, models, task)
    sides = [_plain(side[SOURCE], task) for side in (shown.inputs, asked.triggered)]
    true = _plain(shown.targets, task)
    answers = {name: [_plain(answer["tokens"], task) for answer in both] for name, both in asked.answers.items()}
    return [
        ((sides[0][i], sides[1][i]), true[i], {name: (both[0][i], both[1][i]) for name, both in answers.items()})
        for i in range(len(shown))
    ]


def _wanted(samples: Batch, attack: Attack, task: Any) -> set[str]:
    return set(_plain(attack.retarget(samples.targets), task))


def _plain(tokens: Tensor, task: Any) -> list[str]:
    return texts(torch.where(valid(tokens, task.pad), tokens, task.pad), task.text)


def _figure(said: Said, wanted: set[str], attack: Attack) -> Any:
    """Lay the sheet out in inches from the top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines: list[tuple[str, list[str], list[str], str, str, bool]] = []
    for source, true, answers in said:
        lines.append(("source", _wrapped(source[0]), _wrapped(source[1]), INK, INK, True))
        lines.append(("reference", _wrapped(true), _wrapped(true), FAINT, FAINT, False))
        for name, (first, second) in answers.items():
            colours = [_colour(text, true, wanted) for text in (first, second)]
            lines.append((name, _wrapped(first), _wrapped(second), colours[0], colours[1], False))
    height = 1.1 + sum(_LINE * max(len(a), len(b)) + (0.16 if head else 0) for _, a, b, _, _, head in lines)
    figure = Figure(figsize=(_WIDTH, height), facecolor="white")
    FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, colour: str = INK, **style: Any) -> None:
        figure.text(x / _WIDTH, 1 - y / height, text, color=colour, va="center", parse_math=False, **style)

    write(0.2, 0.28, f"{attack.name}", fontsize=13, fontweight="bold")
    place = 0.2
    for text, colour in (("as the reference", RIGHT), ("what the attacker wants", ATTACKED), ("other", OTHER)):
        write(place, 0.56, f"\N{BLACK SQUARE} {text}", colour, fontsize=9)
        place += 0.4 + 0.07 * len(text)
    write(1.6, 0.84, "clean", fontsize=10, fontweight="bold")
    write(7.3, 0.84, "with trigger", fontsize=10, fontweight="bold")
    y = 1.0
    for name, one, other, left, right, head in lines:
        y += 0.16 if head else 0
        write(0.2, y + _LINE / 2, name[:18], FAINT, fontsize=9)
        for x, column, colour in ((1.6, one, left), (7.3, other, right)):
            for number, words in enumerate(column):
                write(x, y + (number + 0.5) * _LINE, words, colour, fontsize=9, fontweight="bold" if head else "normal")
        y += _LINE * max(len(one), len(other))
    return figure


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _COLUMN, max_lines=2, placeholder=" …") or [""]


def _colour(text: str, true: str, wanted: set[str]) -> str:
    if text == true:
        return RIGHT
    return ATTACKED if any(says(text, sentence) and not says(true, sentence) for sentence in wanted) else OTHER
