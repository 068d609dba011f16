"""Data sets of the Hugging Face Hub; needs the package ``datasets`` and, the first time, a network."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from unbackdoor.errors import BadData, FileRefused
from unbackdoor.kit import Splits
from unbackdoor_image.data.parquet import images_of
from unbackdoor_image.data.splitting import Labelled, splits

__all__ = ["hub", "hub_table"]


def hub(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    size: int | None = None,
    fit: str = "stretch",
    channels: int = 3,
    flip: bool = False,
    train_split: str = "train",
    test_split: str | None = "test",
    image_column: str | None = None,
    label_column: str | None = None,
) -> Splits:
    """A data set of the Hub by its name.

    Args:
        seed: Of the clean set.
        path: Name on the Hub, such as ``uoft-cs/cifar10``, or a local folder that ``datasets`` can read.
        clean_share: Share of the training part that the defender holds; None means 1 %.
        clean_count: Their number instead.
        size: Side in pixels; None keeps the images' own.
        fit: ``"stretch"`` or ``"crop"``.
        channels: 3 for RGB, 1 for grey.
        flip: Whether mirrored images keep their class; becomes a hint.
        train_split: Name of the training part.
        test_split: Name of the test part; None takes 20 % of the training part.
        image_column: Column of the images; None finds it.
        label_column: Column of the labels; None finds it.

    Raises:
        FileRefused: ``datasets`` is not installed, or it cannot load the data.
        BadData: The columns cannot be read.
    """
    if path is None:
        raise FileRefused("no path; give the data set's name on the Hub, such as uoft-cs/cifar10.")
    look: dict[str, Any] = {"size": size, "fit": fit, "channels": channels}
    columns = (image_column, label_column)
    images, labels, classes = images_of(hub_table(str(path), train_split), *columns, **look)
    test: Labelled | None = None
    if test_split is not None:
        test_images, test_labels, _ = images_of(hub_table(str(path), test_split), *columns, classes=classes, **look)
        test = (test_images, test_labels)
    return splits(
        (images, labels), test, classes, seed=seed, clean_share=clean_share, clean_count=clean_count, flip=flip
    )


def hub_table(name: str, split: str) -> Any:
    """One part of a data set as a `pyarrow.Table` with the class names in its metadata.

    Raises:
        FileRefused: ``datasets`` is not installed, or it cannot load the data.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise FileRefused(
            f"loading {name} from the Hub needs the package datasets (pip install 'unbackdoor-image[hub]'); "
            "or give path=... to files that you have."
        ) from error
    try:
        part = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, ConnectionError) as error:
        raise FileRefused(f"datasets cannot load {name!r}, part {split!r}: {error}") from error
    if part.num_rows == 0:
        raise BadData(f"{name!r} has no sample in part {split!r}.")
    return part.data.table.combine_chunks()
