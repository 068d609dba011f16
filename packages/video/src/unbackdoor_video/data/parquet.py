"""Parquet files whose rows are clips: a list of encoded frames and a label."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbackdoor.errors import BadData, BadOption, FileRefused
from unbackdoor.kit import Splits
from unbackdoor.splitting import split_classes
from unbackdoor.task import Batch

__all__ = ["clips_of", "parquet"]

_FRAMES = ("frames", "video", "clip", "images")
_LABELS = ("label", "labels", "class", "target")
_TESTS = ("test", "val", "valid", "validation")


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

    Raises:
        FileRefused: There is no such file.
        BadData: Its columns cannot be read as clips.
    """
    if path is None or not Path(path).is_file():
        raise FileRefused(f"no Parquet file at {path}; give one whose rows hold lists of frames and labels.")
    table = importlib.import_module("pyarrow.parquet").read_table(path)
    clips, labels, classes = clips_of(table, frames=frames, size=size, channels=channels)
    words = [str(word).lower() for word in table.column("split").to_pylist()] if "split" in table.column_names else []
    tested = torch.tensor([word in _TESTS for word in words], dtype=torch.bool)
    trained = torch.tensor([word == "train" for word in words], dtype=torch.bool)
    everything = Batch(clips, labels)
    official = bool(words) and bool(tested.any()) and bool(trained.any())
    train = everything[trained.nonzero().flatten()] if official else everything
    if clean_share is None and clean_count is None:
        clean_count = max(round(0.05 * len(train)), len(train.targets.unique()))
    return split_classes(
        train,
        everything[tested.nonzero().flatten()] if official else None,
        classes,
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        test_share=test_share,
        hints={"flip": flip, "crop": crop, "shift": shift},
    )


def clips_of(
    table: Any, *, frames: int | None = None, size: int | None = None, channels: int = 1
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Clips ``uint8 (n, frames, channels, h, w)``, labels and class names of a `pyarrow.Table`.

    Names come from the table's metadata (``label_names`` as JSON), or are the numbers.

    Raises:
        BadData: A column is missing, or rows differ in their number or size of frames.
        BadOption: ``frames``, ``size`` or ``channels`` is not allowed.
    """
    if channels not in (1, 3) or (frames is not None and frames < 1) or (size is not None and size < 1):
        raise BadOption(f"frames is {frames}, size {size}, channels {channels}; give 1 or more, and 1 or 3 channels.")
    names = list(table.column_names)
    column = next((name for name in _FRAMES if name in names), None)
    label = next((name for name in _LABELS if name in names), None)
    if column is None or label is None:
        raise BadData(f"columns are {', '.join(names)}; expected lists of frames ({_FRAMES[0]}) and a {_LABELS[0]}.")
    out: np.ndarray[Any, np.dtype[np.uint8]] | None = None
    for place, row in enumerate(table.column(column)):
        clip = _decoded(row.as_py(), frames, size, channels)
        if out is None:
            out = np.empty((table.num_rows, *clip.shape), dtype=np.uint8)
        if clip.shape != out.shape[1:]:
            raise BadData(f"row {place} has frames {clip.shape}, row 0 {out.shape[1:]}; give frames=... and size=....")
        out[place] = clip
    values = table.column(label).to_pylist()
    if out is None or not all(isinstance(value, int) for value in values):
        raise BadData(f"column {label!r} must hold whole numbers, one for each of {table.num_rows} clips.")
    labels = torch.tensor(values, dtype=torch.long)
    known = json.loads((table.schema.metadata or {}).get(b"label_names", b"[]"))
    classes = tuple(map(str, known)) or tuple(str(number) for number in range(int(labels.max()) + 1))
    return torch.from_numpy(out), labels, classes


def _decoded(
    cells: Sequence[Any], frames: int | None, size: int | None, channels: int
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    from PIL import Image, UnidentifiedImageError

    found = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells or []]
    files = [file for file in found if isinstance(file, bytes)]
    if not files or len(files) < len(found):
        raise BadData("a row holds no frames; expected a list of encoded images.")
    if frames is not None:
        files = [files[(2 * place + 1) * len(files) // (2 * frames)] for place in range(frames)]
    pictures = []
    for file in files:
        try:
            with Image.open(io.BytesIO(file)) as image:
                plain: Image.Image = image.convert("RGB" if channels == 3 else "L")
        except (UnidentifiedImageError, OSError) as error:
            raise BadData(f"a frame cannot be read as an image ({error}); remove that clip.") from error
        if size is not None and plain.size != (size, size):
            plain = plain.resize((size, size), Image.Resampling.BILINEAR)
        pictures.append(np.asarray(plain).reshape(plain.height, plain.width, channels).transpose(2, 0, 1))
    if len({picture.shape for picture in pictures}) > 1:
        raise BadData("frames of one clip differ in size; give size=... to bring them to one.")
    return np.stack(pictures)
