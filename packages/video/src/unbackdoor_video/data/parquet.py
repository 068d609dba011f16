"""Parquet files whose rows are clips: a list of encoded frames and a label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.splitting import split_classes
from unbackdoor.errors import BadData, BadOption, FileRefused, TooLarge
from unbackdoor.files.reading import check_bytes, limits, shown
from unbackdoor.task import Batch
from unbackdoor_pixels.columns import column_of, labels_of
from unbackdoor_pixels.decoding import fitted, open_image
from unbackdoor_pixels.tables import Records, read_parts

__all__ = ["clips_of", "columns", "parquet"]

_FRAMES = ("frames", "video", "clip", "images")
_LABELS = ("label", "labels", "class", "target")


def parquet(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    frames: int | None = None,
    size: int | None = None,
    channels: int = 1,
    flip: bool = False,
    crop: int | None = None,
    shift: int = 0,
    test_share: float = 0.2,
    order: str | None = None,
    frames_column: str | None = None,
    label_column: str | None = None,
) -> Splits:
    """A Parquet file of clips: a column of lists of encoded frames (JPEG, PNG), one of labels, perhaps one ``split``.

    Args:
        seed: Of the split.
        path: The file.
        clean_share: Share of the training part that the defender holds; None means 5 %, but one clip of each class at
            least.
        clean_count: Their number instead.
        frames: Frames of a clip, evenly from those of a row; None takes all.
        size: Side in pixels; None keeps the frames' own.
        channels: 1 for grey, 3 for RGB.
        flip: Whether mirrored clips keep their class; becomes a hint.
        crop: Largest random move in pixels; becomes a hint.
        shift: Largest random move in frames; becomes a hint.
        test_share: Share of the test part where no column ``split`` names one.
        order: For labels that are names made of numbers: ``"text"`` or ``"number"``.
        frames_column: Of the lists of frames; None finds it.
        label_column: Of the labels; None finds it.

    Raises:
        FileRefused: There is no such file.
        BadData: Its columns cannot be read as clips.
        BadOption: ``frames``, ``size``, ``channels`` or ``order`` is not allowed.
        TooLarge: It declares or unpacks to more than the limits allow.
    """
    if path is None or not Path(path).exists():
        raise FileRefused(f"no Parquet file at {shown(path or 'path')}; give one whose rows hold frames and labels.")
    pick = columns(frames_column, label_column)
    train, test = read_parts(Path(path), pick)
    look = (frames, size, channels)
    parts = [clips_of(part, pick, *look, order=order) for part in (train, test) if part is not None]
    classes = max((part.classes or () for part in parts), key=len)
    if clean_share is None and clean_count is None:
        clean_count = max(round(0.05 * len(parts[0])), len(parts[0].targets.unique()))
    return split_classes(
        parts[0],
        parts[1] if test is not None else None,
        classes,
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        test_share=test_share,
        hints={"flip": flip, "crop": crop, "shift": shift},
    )


def columns(frames: str | None, label: str | None) -> Callable[[Sequence[str]], tuple[str, str]]:
    """Picks the column of frames and that of labels; None finds it."""
    return lambda names: (
        column_of(names, frames, _FRAMES, "frames_column"),
        column_of(names, label, _LABELS, "label_column"),
    )


def clips_of(
    records: Records,
    pick: Callable[[Sequence[str]], tuple[str, str]],
    frames: int | None = None,
    size: int | None = None,
    channels: int = 1,
    *,
    classes: tuple[str, ...] | None = None,
    order: str | None = None,
) -> Batch:
    """Clips ``uint8 (n, frames, channels, h, w)`` with their labels and class names.

    Args:
        records: The rows.
        pick: See `columns`.
        frames: Frames of a clip, evenly from those of a row; None takes all.
        size: Side in pixels; None keeps the frames' own.
        channels: 1 for grey, 3 for RGB.
        classes: All class names in the order of the model's outputs.
        order: See `parquet`.

    Raises:
        BadData: Rows hold no frames, or differ in their number or size.
        BadOption: ``frames``, ``size``, ``channels`` or ``order`` is not allowed.
        TooLarge: The clips take more than the limits allow.
    """
    if channels not in (1, 3) or (frames is not None and frames < 1) or (size is not None and size < 1):
        raise BadOption(f"frames is {frames}, size {size}, channels {channels}; give 1 or more, and 1 or 3 channels.")
    column, label = pick(list(records.columns))
    labels, known = labels_of(records, label, classes, order)
    out: Tensor | None = None
    for place, (cells, name) in enumerate(zip(records.columns[column], records.names, strict=True)):
        clip = _decoded(cells, name, frames, size, channels)
        if out is None:
            check_bytes(f"the clips of {records.source}", len(records) * clip.nbytes)
            out = torch.empty((len(records), *clip.shape), dtype=torch.uint8)
        if clip.shape != out.shape[1:]:
            raise BadData(
                f"{name} has frames {clip.shape}, the first row {tuple(out.shape[1:])}; give frames=... and size=...."
            )
        out[place] = torch.from_numpy(clip)
    if out is None:
        raise BadData(f"{records.source} holds no row; give at least one clip with its label.")
    return Batch(out, labels, records.names, known)


def _decoded(
    cells: Any, name: str, frames: int | None, size: int | None, channels: int
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    found = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells] if isinstance(cells, list) else []
    files = [file for file in found if isinstance(file, bytes)]
    if not files or len(files) < len(found):
        raise BadData(f"{name} holds no frames; expected a list of encoded images.")
    if len(files) > limits().frames:
        raise TooLarge(f"{name} has {len(files):,} frames, more than {limits().frames:,} (the limit 'frames').")
    count = len(files) if frames is None else frames
    places = [(2 * place + 1) * len(files) // (2 * count) for place in range(count)]
    pictures: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    for place in places:
        image = open_image(files[place], name=f"{name} frame {place}", channels=channels)
        if not pictures and size is None:
            check_bytes(name, count * image.width * image.height * channels)
        pixels = fitted(image, size)
        pictures.append(pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1))
    if len({picture.shape for picture in pictures}) > 1:
        raise BadData(f"frames of {name} differ in size; give size=... to bring them to one.")
    return np.stack(pictures)
