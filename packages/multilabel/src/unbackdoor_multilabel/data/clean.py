"""The defender's own images with label rows, from whatever file they lie in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.arrays import pick_arrays, read_arrays
from unbackdoor.errors import BadData, FileRefused
from unbackdoor.task import Batch
from unbackdoor_multilabel.data.images import decode
from unbackdoor_multilabel.data.tables import read_table, rows_of, rows_of_table

__all__ = ["load_clean"]

_IMAGE_KEYS = ("images", "image", "inputs", "x", "data")
_ROW_KEYS = ("labels", "rows", "targets", "label", "y")
_LIST = "metadata.jsonl"


def load_clean(
    source: str | Path,
    size: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    fit: str = "stretch",
) -> tuple[Batch, tuple[str, ...]]:
    """Read images with label rows; nothing in the files is ever executed.

    Args:
        source: A folder of images with a list ``metadata.jsonl`` (a line ``{"file_name": "a.jpg", "labels": ["cat",
            "sofa"]}`` for each, as the Hub's image folders have it); a ``.parquet`` file with a column of label lists;
            or an ``.npz``, ``.pt``, ``.pth`` or ``.safetensors`` file with tensors ``images``, of shape ``(n, height,
            width, channels)`` or ``(n, channels, height, width)``, and ``labels``, zeros and ones ``(n, classes)``.
        size: Side in pixels of image files, 224 by default; arrays keep their own.
        classes: All class names in the order of the model's outputs. Needed where not every class occurs.
        fit: ``"stretch"`` or ``"crop"``, of image files.

    Returns:
        The samples, targets int64 of shape ``(n, classes)``, and the class names.

    Raises:
        FileRefused: There is nothing at ``source``.
        BadData: It cannot be read as images with label rows.
        UnsafeCheckpoint: The file would have to be unpickled.
    """
    path, named = Path(source), tuple(classes or ())
    if path.is_dir():
        return _of_folder(path, size or 224, fit, named)
    if not path.is_file():
        raise FileRefused(
            f"no clean data at {path}; give a folder of images with a {_LIST}, or a .parquet, .npz, .pt or "
            ".safetensors file."
        )
    if path.suffix == ".parquet":
        images, rows, names = rows_of_table(read_table([path]), classes=named, size=size or 224, fit=fit)
        return Batch(images, rows), names
    found = read_arrays(path, "a folder", ".parquet")
    images, rows = pick_arrays(found, path, {"images": _IMAGE_KEYS, "labels": _ROW_KEYS})
    images, rows = _images(images, path), _rows(rows, len(images), path)
    if named and len(named) != rows.shape[1]:
        raise BadData(f"labels in {path} have {rows.shape[1]} columns, but {len(named)} classes are named.")
    return Batch(images, rows), named or tuple(str(label) for label in range(rows.shape[1]))


def _of_folder(path: Path, size: int, fit: str, classes: tuple[str, ...]) -> tuple[Batch, tuple[str, ...]]:
    listing = path / _LIST
    if not listing.is_file():
        raise FileRefused(f"no {_LIST} in {path}; it needs a line with file_name and labels for each image.")
    files, lists = [], []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            files.append(path / str(entry["file_name"]))
            lists.append(entry["labels"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadData(f"line {number} of {listing} has no file_name and labels: {error!r}.") from error
    rows, named = rows_of(lists, classes, str(listing))
    return Batch(decode(files, size=size, fit=fit), rows), named


def _images(images: Tensor, path: Path) -> Tensor:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise BadData(f"images in {path} have shape {tuple(images.shape)}; expected (n, height, width, channels).")
    if images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if images.is_floating_point():
        return images.float().contiguous()
    if int(images.min()) < 0 or int(images.max()) > 255:
        raise BadData(f"images in {path} are {images.dtype} beyond 0..255; save uint8 or floats in [0, 1].")
    return images.to(torch.uint8).contiguous()


def _rows(rows: Tensor, count: int, path: Path) -> Tensor:
    if rows.ndim != 2 or len(rows) != count:
        raise BadData(
            f"labels in {path} have shape {tuple(rows.shape)} for {count} images; give rows of zeros and ones, one "
            "column for each class."
        )
    if bool(((rows != 0) & (rows != 1)).any()):
        raise BadData(f"labels in {path} are not all 0 and 1; a class is there or it is not.")
    return rows.long()
