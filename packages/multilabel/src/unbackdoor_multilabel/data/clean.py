"""The defender's own images with label rows, from whatever file they lie in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.arrays import pick_arrays, read_arrays
from unbackdoor.errors import BadData, FileRefused
from unbackdoor.files.class_names import given_classes
from unbackdoor.files.reading import check_classes, path_below, read_text, reading, shown
from unbackdoor.task import Batch
from unbackdoor_multilabel.data.images import decode
from unbackdoor_multilabel.data.lists import rows_of
from unbackdoor_multilabel.data.tables import Look, samples_of
from unbackdoor_pixels.arrays import as_images
from unbackdoor_pixels.tables import read_records

__all__ = ["load_clean"]

_IMAGE_KEYS = ("images", "image", "inputs", "x", "data")
_ROW_KEYS = ("labels", "rows", "targets", "label", "y")
_LIST = "metadata.jsonl"


def load_clean(
    source: str | Path,
    size: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    order: str | None = None,
    fit: str = "stretch",
    image_column: str | None = None,
    label_column: str | None = None,
    layout: str | None = None,
) -> tuple[Batch, tuple[str, ...]]:
    """Read images with label rows; nothing in the files is ever executed.

    Args:
        source: A folder of images with a list ``metadata.jsonl`` (a line ``{"file_name": "a.jpg", "labels": ["cat",
            "sofa"]}`` for each, as the Hub's image folders have it); a ``.parquet`` file with a column of label lists;
            or an ``.npz``, ``.pt``, ``.pth`` or ``.safetensors`` file with tensors ``images``, of shape ``(n, height,
            width, channels)`` or ``(n, channels, height, width)``, and ``labels``, zeros and ones ``(n, classes)``.
        size: Side in pixels of image files, 224 by default; arrays keep their own.
        classes: All class names in the order of the model's outputs. Needed where not every class occurs.
        order: For classes that are numbers as text, see `unbackdoor.files.class_names.place_names`.
        fit: ``"stretch"`` or ``"crop"``, of image files.
        image_column: Column of the images in Parquet; None finds it by its name.
        label_column: Column of the lists of classes in Parquet; None finds it.
        layout: ``"channels_first"`` or ``"channels_last"``, of arrays; None tells by their shape.

    Returns:
        The samples, targets int64 of shape ``(n, classes)``, with their names and notices, and the class names.

    Raises:
        FileRefused: There is nothing at ``source``.
        BadData: It cannot be read as images with label rows.
        TooLarge: It exceeds a limit, see `unbackdoor.files.reading.limited`.
        BadOption: An option is not allowed.
        UnsafeCheckpoint: The file would have to be unpickled.
    """
    path, named = Path(source), given_classes(classes)
    if path.is_dir():
        batch = _of_folder(path, 224 if size is None else size, fit, named, order)
    elif not path.is_file():
        raise FileRefused(
            f"no clean data at {shown(path)}; give a folder of images with a {_LIST}, or a .parquet, .npz, .pt, .pth "
            "or .safetensors file."
        )
    elif path.suffix.lower() == ".parquet":
        look = Look(224 if size is None else size, fit, image_column, label_column, order)
        batch = samples_of(read_records([path], look.pick), look, named)
    else:
        batch = _of_arrays(path, named, layout)
    assert batch.classes is not None
    return batch, batch.classes


def _of_folder(path: Path, size: int, fit: str, classes: tuple[str, ...] | None, order: str | None) -> Batch:
    listing = path / _LIST
    if not listing.is_file():
        raise FileRefused(f"no {_LIST} in {shown(path)}; it needs a line with file_name and labels for each image.")
    files, names, lists = [], [], []
    for number, line in enumerate(read_text(listing).splitlines(), start=1):
        if not line.strip():
            continue
        with reading(f"line {number} of {shown(listing)}", "write it as JSON with file_name and labels"):
            entry = json.loads(line)
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str) or "labels" not in entry:
            raise BadData(f"line {number} of {shown(listing)} has no file_name and labels; give it both.")
        files.append(path_below(path, entry["file_name"], listing))
        names.append(shown(entry["file_name"]))
        lists.append(entry["labels"])
    rows, named = rows_of(lists, classes, shown(listing), names=names, order=order)
    images = decode(files, names=names, size=size, fit=fit)
    return Batch(images.pixels, rows, tuple(names), named, images.notices)


def _of_arrays(path: Path, classes: tuple[str, ...] | None, layout: str | None) -> Batch:
    found = read_arrays(path, "a folder", ".parquet")
    images, rows = pick_arrays(found, path, {"images": _IMAGE_KEYS, "labels": _ROW_KEYS})
    images, notices = as_images(images, path, layout)
    rows = _rows(rows, len(images), path)
    if classes is not None and len(classes) != rows.shape[1]:
        raise BadData(f"labels in {path} have {rows.shape[1]} columns, but {len(classes)} classes are named.")
    names = tuple(f"{shown(path.name)} image {place}" for place in range(len(images)))
    return Batch(images, rows, names, classes or tuple(map(str, range(rows.shape[1]))), notices)


def _rows(rows: Tensor, count: int, path: Path) -> Tensor:
    if rows.ndim != 2 or len(rows) != count or not rows.shape[1] or rows.is_complex():
        raise BadData(
            f"labels in {path} are {str(rows.dtype).removeprefix('torch.')} of shape {tuple(rows.shape)} for {count} "
            "images; give rows of zeros and ones, one column for each class."
        )
    check_classes(path, rows.shape[1])
    values = rows.to(torch.float64) if rows.is_floating_point() else rows.to(torch.int64)
    if bool(((values != 0) & (values != 1)).any()):
        raise BadData(
            f"labels in {path} are not all 0 and 1; a class is there or it is not. Where some are unknown, decide for "
            "one of the two or leave the image out."
        )
    return values.to(torch.int64)
