"""Parquet files as the Hugging Face Hub stores image data sets."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbackdoor.errors import BadData, FileRefused
from unbackdoor.kit import Splits
from unbackdoor_image.data.decoding import decode
from unbackdoor_image.data.splitting import Labelled, splits

__all__ = ["find_files", "images_of", "parquet", "read_table"]

_IMAGE_COLUMNS = ("img", "image", "images", "pixel_values", "jpg", "png")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "cls")
_TEST_NAMES = ("test", "val", "valid", "validation")


def parquet(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    size: int | None = None,
    fit: str = "stretch",
    channels: int = 3,
    flip: bool = False,
    test_share: float = 0.2,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Splits:
    """Any labelled images in Parquet: a file, or a folder with training and test files.

    A column ``split`` with train and test (or val) wins; then files with these words in their names; else a share of
    the samples becomes the test part. Images are a struct with ``bytes``, or bytes.

    Args:
        seed: Of the split.
        path: File or folder.
        clean_share: Share of the training part that the defender holds; None means 1 %.
        clean_count: Their number instead.
        size: Side in pixels; None keeps the images' own.
        fit: ``"stretch"`` or ``"crop"``, see `decode`.
        channels: 3 for RGB, 1 for grey.
        flip: Whether mirrored images keep their class; becomes a hint.
        test_share: Share of the test part where the data name none.
        image_column: Column of the images; None finds it by its name or type.
        label_column: Column of the class indices or names; None finds it.

    Raises:
        FileRefused: There is no such file.
        BadData: The columns cannot be read.
    """
    if path is None:
        raise FileRefused("no path; give the Parquet file or the folder that holds the files.")
    train_files, test_files = find_files(Path(path), "")
    table = read_table(train_files)
    columns = (image_column, label_column)
    if not test_files and "split" in table.column_names:
        names = [str(value) for value in table.column("split").to_pylist()]
        tested = [place for place, name in enumerate(names) if name.lower() in _TEST_NAMES]
        trained = [place for place, name in enumerate(names) if name.lower() == "train"]
        train_table, test_table = table.take(trained), table.take(tested) if tested else None
    else:
        train_table, test_table = table, read_table(test_files) if test_files else None
    look: dict[str, Any] = {"size": size, "fit": fit, "channels": channels}
    images, labels, classes = images_of(train_table, *columns, **look)
    test: Labelled | None = None
    if test_table is not None:
        tested_images, tested_labels, test_classes = images_of(test_table, *columns, classes=classes, **look)
        test = (tested_images, tested_labels)
        classes = max(classes, test_classes, key=len)
    return splits(
        (images, labels),
        test,
        classes,
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        test_share=test_share,
        flip=flip,
    )


def find_files(path: Path, name: str) -> tuple[list[Path], list[Path]]:
    """Training and test files at ``path``: a file and its sister, or a folder with all shards of both.

    Args:
        path: ``.../x_train.parquet`` finds ``.../x_test.parquet``; a folder is searched with its sub-folders.
        name: Where a folder holds several data sets, files whose name starts with this are preferred.

    Raises:
        FileRefused: There is no Parquet file.
    """
    if path.is_file():
        sisters = [path.with_name(path.name.replace("train", word)) for word in _TEST_NAMES if "train" in path.name]
        return [path], [sister for sister in sisters if sister.is_file()][:1]
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else []
    files = [file for file in files if name and file.name.startswith(name)] or files
    if not files:
        raise FileRefused(
            f"no Parquet file at {path}; give a file such as x_train.parquet or the folder that holds it."
        )
    test = [file for file in files if any(word in file.stem.lower() for word in _TEST_NAMES)]
    train = [file for file in files if "train" in file.stem.lower()]
    for word in _TEST_NAMES:
        exact = [file for file in test if word in file.stem.lower()]
        if exact:
            test = exact
            break
    if train:
        return train, test
    if len(files) == 1:
        return files, []
    names = ", ".join(file.name for file in files[:6])
    raise FileRefused(f"cannot tell the training files in {path} ({names}); name them ...train... or give one file.")


def read_table(files: Sequence[Path]) -> Any:
    """All rows of the files, one `pyarrow.Table`."""
    arrow, reader = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    return arrow.concat_tables([reader.read_table(file) for file in files])


def images_of(
    table: Any,
    image_column: str | None = None,
    label_column: str | None = None,
    *,
    classes: tuple[str, ...] = (),
    size: int | None = None,
    fit: str = "stretch",
    channels: int = 3,
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images, labels and class names of a `pyarrow.Table`.

    Names come from the table's metadata (``ClassLabel`` or ``label_names``), from ``classes``, or are the numbers.

    Raises:
        BadData: A column is missing or of a type that is no image or no label.
    """
    image_column = _column(table, image_column, _IMAGE_COLUMNS, "image")
    label_column = _column(table, label_column, _LABEL_COLUMNS, "label")
    cells = table.column(image_column).to_pylist()
    found = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
    contents = [content for content in found if isinstance(content, bytes)]
    if len(contents) < len(cells):
        raise BadData(f"column {image_column!r} holds no image files; expected bytes or a struct with bytes.")
    values = table.column(label_column).to_pylist()
    named = _class_names(table, label_column) or classes
    if values and all(isinstance(value, str) for value in values):
        named = named or tuple(sorted(set(values)))
        strangers = sorted(set(values) - set(named))
        if strangers:
            raise BadData(f"labels {', '.join(strangers[:8])} are not among the classes {', '.join(named[:20])}.")
        labels = torch.tensor([named.index(value) for value in values])
    elif values and all(isinstance(value, int) for value in values):
        labels = torch.tensor(values)
        named = named or tuple(str(label) for label in range(int(labels.max()) + 1))
    else:
        raise BadData(f"column {label_column!r} is no label: expected whole numbers or names, one for each image.")
    return decode(contents, size=size, fit=fit, channels=channels), labels, named


def _column(table: Any, given: str | None, usual: tuple[str, ...], kind: str) -> str:
    names = list(table.column_names)
    if given is not None:
        if given not in names:
            raise BadData(f"no column {given!r}; there are {', '.join(names)}.")
        return given
    for name in usual:
        if name in names:
            return name
    raise BadData(f"no {kind} column among {', '.join(names)}; name it with {kind}_column=....")


def _class_names(table: Any, label_column: str) -> tuple[str, ...]:
    metadata = table.schema.metadata or {}
    if b"label_names" in metadata:
        return tuple(map(str, json.loads(metadata[b"label_names"])))
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return tuple(map(str, features.get(label_column, {}).get("names", ())))
