"""Clips composed of scikit-learn's handwritten digits: which digit it is and where it moves make the class."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.splitting import clean_size, draw
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch

__all__ = ["moving_digits"]

_MOVES = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
_DIGITS = (3, 7)


def moving_digits(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    clips: int = 1200,
    frames: int = 6,
    size: int = 16,
) -> Splits:
    """Handwritten 3s and 7s that move right, left, down or up: 8 classes, composed here, no file needed.

    No single frame tells the class: a clip that moves right, played backwards, is one that moves left, and all digits
    take all paths. Nor does the path without the digit. Digits of the test clips are of no other part. 25 % of the
    clips are for the test, 10 % of the rest clean.

    Args:
        seed: Of digits, paths and parts.
        path: Not used; the digits come with scikit-learn.
        clean_share: Share of the defender's clips.
        clean_count: Their number instead.
        clips: Number of all clips.
        frames: Frames of a clip.
        size: Side of the frames in pixels; a digit has 8.

    Raises:
        BadOption: ``size`` or ``frames`` leaves no room to move, or there are too few clips.
    """
    if size < 12 or frames < 3 or clips < 80:
        raise BadOption(f"size is {size}, frames {frames}, clips {clips}; give at least 12, 3 and 80.")
    generator = torch.Generator().manual_seed(seed)
    bunch = importlib.import_module("sklearn.datasets").load_digits()
    images, numbers = torch.from_numpy(bunch.images).float() / 16, torch.from_numpy(bunch.target).long()
    labels = torch.arange(clips) % (len(_DIGITS) * len(_MOVES))
    labels = labels[torch.randperm(clips, generator=generator)]
    tested = torch.zeros(clips, dtype=torch.bool)
    tested[draw(labels, round(0.25 * clips), generator)] = True
    inputs = torch.empty(clips, frames, 1, size, size)
    for place, digit in enumerate(_DIGITS):
        pool = images[numbers == digit][torch.randperm(int((numbers == digit).sum()), generator=generator)]
        cut = round(0.75 * len(pool))
        for held, some in ((False, pool[:cut]), (True, pool[cut:])):
            chosen = ((labels // len(_MOVES) == place) & (tested == held)).nonzero().flatten().tolist()
            for number in chosen:
                picture = some[int(torch.randint(len(some), (), generator=generator))]
                step = list(_MOVES.values())[int(labels[number]) % len(_MOVES)]
                inputs[number, :, 0] = _composed(picture, step, frames, size, generator)
    rest = (~tested).nonzero().flatten()
    count = clean_size(len(rest), clean_share, clean_count, 0.1)
    clean = rest[draw(labels[rest], count, generator)]
    free = ~tested
    free[clean] = False
    return Splits(
        train=Batch(inputs[free], labels[free]),
        clean=Batch(inputs[clean], labels[clean]),
        test=Batch(inputs[tested], labels[tested]),
        classes=tuple(f"{digit} {move}" for digit in _DIGITS for move in _MOVES),
        hints={"flip": False, "crop": 1},
    )


def _composed(picture: Tensor, step: tuple[int, int], frames: int, size: int, generator: torch.Generator) -> Tensor:
    """``(frames, size, size)``: the digit on a straight path of random place and length, in faint noise."""
    room = size - 8
    length = float(torch.empty(()).uniform_(0.6, 1.0, generator=generator)) * room
    start = torch.rand(2, generator=generator) * room  # across the path: anywhere
    along = 0 if step[0] else 1
    spare = room - length
    begin = float(torch.rand((), generator=generator)) * spare
    out = 0.1 * torch.rand(frames, size, size, generator=generator)
    for frame in range(frames):
        share = frame / (frames - 1)
        share = share if step[along] > 0 else 1 - share
        corner = start.clone()
        corner[along] = begin + share * length
        top, left = corner.round().long().tolist()
        out[frame, top : top + 8, left : left + 8] = torch.maximum(out[frame, top : top + 8, left : left + 8], picture)
    return out
