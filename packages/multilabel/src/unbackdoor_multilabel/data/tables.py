"""Parquet files and Hub data sets whose label column holds a list of classes for each image."""

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
from unbackdoor_multilabel.data.images import decode
from unbackdoor_multilabel.data.splitting import Labelled, splits

__all__ = ["hub", "parquet", "read_table", "rows_of", "rows_of_table"]

_IMAGE_COLUMNS = ("img", "image", "images", "pixel_values", "jpg", "png")
_LABEL_COLUMNS = ("labels", "label", "classes", "categories", "tags")
_TEST_NAMES = ("test", "val", "valid", "validation")


def parquet(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    size: int = 224,
    fit: str = "stretch",
    flip: bool = True,
    test_share: float = 0.2,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Splits:
    """Any images with lists of labels in Parquet: a file, or a folder with training and test files.

    A column ``split`` with train and test (or val) wins; then files with these words in their names; else a share of
    the images becomes the test part. Images are a struct with ``bytes``, or bytes; labels a list of class indices or
    names.

    Args:
        seed: Of the split.
        path: File or folder.
        clean_share: Share of the training part that the defender holds; None means 10 %.
        clean_count: Their number instead.
        size: Side in pixels.
        fit: ``"stretch"`` or ``"crop"``.
        flip: Whether mirrored images show the same; becomes a hint.
        test_share: Share of the test part where the data name none.
        image_column: Column of the images; None finds it by its name.
        label_column: Column of the labels; None finds it.

    Raises:
        FileRefused: There is no such file.
        BadData: The columns cannot be read.
    """
    if path is None:
        raise FileRefused("no path; give the Parquet file or the folder that holds the files.")
    place = Path(path)
    files = [place] if place.is_file() else sorted(place.rglob("*.parquet")) if place.is_dir() else []
    if not files:
        raise FileRefused(f"no Parquet file at {path}; give a file or the folder that holds train and test files.")
    tested = [file for file in files if any(word in file.stem.lower() for word in _TEST_NAMES)] if files[1:] else []
    table = read_table([file for file in files if file not in tested])
    test_table = read_table(tested) if tested else None
    if test_table is None and "split" in table.column_names:
        names = [str(value).lower() for value in table.column("split").to_pylist()]
        held = [place for place, name in enumerate(names) if name in _TEST_NAMES]
        test_table = table.take(held) if held else None
        table = table.take([place for place, name in enumerate(names) if name == "train"])
    columns, look = (image_column, label_column), {"size": size, "fit": fit}
    images, rows, classes = rows_of_table(table, *columns, **look)  # type: ignore[arg-type]
    test: Labelled | None = None
    if test_table is not None:
        test_images, test_rows, _ = rows_of_table(test_table, *columns, classes=classes, **look)  # type: ignore[arg-type]
        test = (test_images, test_rows)
    return splits(
        (images, rows),
        test,
        classes,
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        test_share=test_share,
        flip=flip,
        attack_hints={"rate": 0.05},
    )


def hub(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    size: int = 224,
    fit: str = "stretch",
    flip: bool = True,
    train_split: str = "train",
    test_split: str | None = "test",
    image_column: str | None = None,
    label_column: str | None = None,
) -> Splits:
    """A data set of the Hugging Face Hub by its name, with a column of label lists.

    Args:
        seed: Of the split.
        path: Name on the Hub, or a local folder that ``datasets`` can read.
        clean_share: Share of the training part that the defender holds; None means 10 %.
        clean_count: Their number instead.
        size: Side in pixels.
        fit: ``"stretch"`` or ``"crop"``.
        flip: Whether mirrored images show the same; becomes a hint.
        train_split: Name of the training part.
        test_split: Name of the test part; None takes 20 % of the training part.
        image_column: Column of the images; None finds it.
        label_column: Column of the labels; None finds it.

    Raises:
        FileRefused: ``datasets`` is not installed, or it cannot load the data.
        BadData: The columns cannot be read.
    """
    if path is None:
        raise FileRefused("no path; give the data set's name on the Hub.")
    columns, look = (image_column, label_column), {"size": size, "fit": fit}
    images, rows, classes = rows_of_table(_hub_table(str(path), train_split), *columns, **look)  # type: ignore[arg-type]
    test: Labelled | None = None
    if test_split is not None:
        found = rows_of_table(_hub_table(str(path), test_split), *columns, classes=classes, **look)  # type: ignore[arg-type]
        test = (found[0], found[1])
    return splits(
        (images, rows), test, classes, seed=seed, clean_share=clean_share, clean_count=clean_count, flip=flip,
        attack_hints={"rate": 0.05},
    )  # fmt: skip


def read_table(files: Sequence[Path]) -> Any:
    """All rows of the files, one `pyarrow.Table`."""
    arrow, reader = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    return arrow.concat_tables([reader.read_table(file) for file in files])


def rows_of_table(
    table: Any,
    image_column: str | None = None,
    label_column: str | None = None,
    *,
    classes: tuple[str, ...] = (),
    size: int = 224,
    fit: str = "stretch",
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images, label rows and class names of a `pyarrow.Table`.

    Names come from ``classes``, else from the table's metadata (``label_names``, or the Hub's ``ClassLabel``), else
    they are what occurs, or the numbers up to the highest.

    Raises:
        BadData: A column is missing, or holds no images or no lists of labels.
    """
    image_column = _column(table, image_column, _IMAGE_COLUMNS, "image")
    label_column = _column(table, label_column, _LABEL_COLUMNS, "label")
    cells = table.column(image_column).to_pylist()
    found = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
    contents = [content for content in found if isinstance(content, bytes)]
    if len(contents) < len(cells):
        raise BadData(f"column {image_column!r} holds no image files; expected bytes or a struct with bytes.")
    lists = table.column(label_column).to_pylist()
    rows, named = rows_of(lists, classes or _names(table, label_column), f"column {label_column!r}")
    return decode(contents, size=size, fit=fit), rows, named


def rows_of(lists: Sequence[Any], classes: tuple[str, ...], what: str) -> tuple[Tensor, tuple[str, ...]]:
    """Lists of class indices or names as rows of 0 and 1, int64 ``(n, classes)``, and the names of the classes.

    Raises:
        BadData: They are no such lists, or name a class that is not there.
    """
    if not all(isinstance(one, list | tuple) for one in lists):
        raise BadData(f"{what} holds no lists; expected a list of class indices or names for each image.")
    values = {value for one in lists for value in one}
    if all(isinstance(value, str) for value in values):
        named = classes or tuple(sorted(values))
        index = {name: place for place, name in enumerate(named)}
    elif all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        named = classes or tuple(str(label) for label in range(max(values) + 1))
        index = {label: label for label in range(len(named))}  # type: ignore[misc]
    else:
        raise BadData(f"{what} mixes kinds of labels; expected class indices alone or names alone.")
    strangers = sorted(map(str, values - set(index)))
    if strangers:
        raise BadData(
            f"{what} holds {', '.join(strangers[:8])}; there are {len(named)} classes: {', '.join(named[:20])}."
        )
    rows = torch.zeros(len(lists), len(named), dtype=torch.int64)
    for place, one in enumerate(lists):
        rows[place, [index[value] for value in one]] = 1
    return rows, named


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


def _names(table: Any, label_column: str) -> tuple[str, ...]:
    metadata = table.schema.metadata or {}
    if b"label_names" in metadata:
        return tuple(map(str, json.loads(metadata[b"label_names"])))
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    feature = features.get(label_column, {})
    inner = feature[0] if isinstance(feature, list) and feature else feature.get("feature", feature)
    return tuple(map(str, inner.get("names", ())))


def _hub_table(name: str, split: str) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise FileRefused(
            f"loading {name} from the Hub needs the package datasets (pip install 'unbackdoor-multilabel[hub]'); "
            "or give path=... to files that you have."
        ) from error
    try:
        part = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, ConnectionError) as error:
        raise FileRefused(f"datasets cannot load {name!r}, part {split!r}: {error}") from error
    if part.num_rows == 0:
        raise BadData(f"{name!r} has no sample in part {split!r}.")
    return part.data.table.combine_chunks()
