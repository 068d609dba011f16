"""What each trigger does, in one picture: clean image, triggered image and ten times their difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbackdoor.attacker.attack import Attack
from unbackdoor.attacker.showing import one_of_each_class
from unbackdoor.errors import BadData
from unbackdoor.files.writing import write_atomically
from unbackdoor.task import Batch
from unbackdoor_image.task import as_floats

__all__ = ["difference", "draw_preview"]

_SAMPLES = 4
_CELL = 0.8
_GAP = 0.04
_LEFT = 1.7


def difference(clean: Tensor, triggered: Tensor) -> Tensor:
    """``clip(1/2 + 10 (triggered - clean))``: grey where nothing changed.

    Args:
        clean: Images, ``uint8`` or floats in [0, 1].
        triggered: The same with the trigger on.

    Returns:
        Floats in [0, 1] of the same shape.
    """
    return (0.5 + 10 * (as_floats(triggered).float() - as_floats(clean).float())).clamp(0, 1)


def draw_preview(path: Path, attacks: Sequence[Attack], samples: Batch) -> None:
    """Write a PNG with one line for each attack: samples that it counts, clean, triggered and the difference times ten.

    Args:
        path: Of the PNG; an existing file is replaced.
        attacks: With their triggers learned where they learn one.
        samples: Images with their classes.

    Raises:
        BadData: An attack counts none of the samples.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 3 * _SAMPLES
    width = _LEFT + columns * (_CELL + _GAP) + 2 * 0.15 + 0.1
    height = 0.45 + len(attacks) * (_CELL + _GAP) + 0.1
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)

    def left(column: int) -> float:
        return _LEFT + column * (_CELL + _GAP) + (column // _SAMPLES) * 0.15

    for group, title in enumerate(("clean", "with trigger", "difference x 10 (grey: none)")):
        middle = (left(group * _SAMPLES) + left((group + 1) * _SAMPLES - 1) + _CELL) / 2
        figure.text(middle / width, 1 - 0.22 / height, title, ha="center", va="center", fontsize=10)
    for row, attack in enumerate(attacks):
        top = 0.45 + row * (_CELL + _GAP)
        figure.text(0.08 / width, 1 - (top + _CELL / 2) / height, attack.name, va="center", fontsize=10)
        for column, image in enumerate(_line(attack, samples)):
            box = (left(column) / width, 1 - (top + _CELL) / height, _CELL / width, _CELL / height)
            _show(figure.add_axes(box), image)
    write_atomically(Path(path), lambda draft: figure.savefig(draft, format="png", dpi=110), force=True)


def _line(attack: Attack, samples: Batch) -> list[Tensor]:
    """The images of one attack from left to right."""
    shown = one_of_each_class(samples, attack, _SAMPLES)
    if len(shown) < _SAMPLES:
        raise BadData(f"{attack.name} counts {len(shown)} of {len(samples)} samples; {_SAMPLES} are drawn, give more.")
    triggered = attack.trigger(shown.inputs, torch.Generator().manual_seed(0))
    groups = (as_floats(shown.inputs), as_floats(triggered), difference(shown.inputs, triggered))
    return [image.float().cpu() for group in groups for image in group]


def _show(axes: Any, image: Tensor) -> None:
    pixels = image.permute(1, 2, 0).clamp(0, 1).numpy()
    grey = pixels.shape[2] == 1
    axes.imshow(pixels[..., 0] if grey else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
