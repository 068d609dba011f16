"""Parquet files and Hub data sets whose label column holds a list of classes for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import FileRefused
from unbackdoor.files.class_names import given_classes
from unbackdoor.task import Batch
from unbackdoor_multilabel.data.images import decode
from unbackdoor_multilabel.data.lists import rows_of
from unbackdoor_multilabel.data.splitting import splits
from unbackdoor_pixels.columns import column_of, contents_of
from unbackdoor_pixels.hub import hub_records
from unbackdoor_pixels.tables import Records, read_parts

__all__ = ["Look", "hub", "parquet", "samples_of"]

_IMAGE_COLUMNS = ("img", "image", "images", "pixel_values", "jpg", "png")
_LABEL_COLUMNS = ("labels", "label", "classes", "categories", "tags")
_PACKAGE = "unbackdoor-multilabel"


@dataclass(frozen=True)
class Look:
    """How images and their classes are read out of a table.

    Attributes:
        size: Side in pixels.
        fit: ``"stretch"`` or ``"crop"``.
        image_column: Column of the images; None finds it.
        label_column: Column of the lists of classes; None finds it.
        order: For classes that are numbers as text, see `unbackdoor.files.class_names.place_names`.
    """

    size: int = 224
    fit: str = "stretch"
    image_column: str | None = None
    label_column: str | None = None
    order: str | None = None

    def columns(self, names: Sequence[str]) -> tuple[str, str]:
        """The columns of images and labels among all ``names``."""
        return (
            column_of(names, self.image_column, _IMAGE_COLUMNS, "image_column"),
            column_of(names, self.label_column, _LABEL_COLUMNS, "label_column"),
        )

    def pick(self, names: Sequence[str]) -> list[str]:
        """The columns that are read."""
        return list(self.columns(names))


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
    classes: Sequence[str] | None = None,
    order: str | None = None,
) -> Splits:
    """Any images with lists of labels in Parquet: a file, or a folder with training and test files.

    In a folder, files with test or val in their names are the test part; else a column ``split`` with train and test
    (or val) names the parts; else a share of the images becomes the test part. Images are a struct with ``bytes``, or
    bytes; labels a list of class indices or names.

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
        classes: All class names in the order of the model's outputs; None takes those of the file.
        order: For classes that are numbers as text, see `unbackdoor.files.class_names.place_names`.

    Raises:
        FileRefused: There is no such file.
        BadData: The columns cannot be read.
    """
    if path is None:
        raise FileRefused("no path; give the Parquet file or the folder that holds the files.")
    look = Look(size, fit, image_column, label_column, order)
    train_records, test_records = read_parts(Path(path), look.pick, sister=False)
    train = samples_of(train_records, look, given_classes(classes))
    return splits(
        train,
        None if test_records is None else samples_of(test_records, look, train.classes),
        train.classes or (),
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
    classes: Sequence[str] | None = None,
    order: str | None = None,
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
        classes: All class names in the order of the model's outputs; None takes those of the data.
        order: For classes that are numbers as text, see `unbackdoor.files.class_names.place_names`.

    Raises:
        FileRefused: ``datasets`` is not installed, or it cannot load the data.
        BadData: The columns cannot be read.
    """
    if path is None:
        raise FileRefused("no path; give the data set's name on the Hub.")
    look = Look(size, fit, image_column, label_column, order)
    train = samples_of(hub_records(str(path), train_split, look.pick, _PACKAGE), look, given_classes(classes))
    test = None
    if test_split is not None:
        test = samples_of(hub_records(str(path), test_split, look.pick, _PACKAGE), look, train.classes)
    return splits(
        train,
        test,
        train.classes or (),
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        flip=flip,
        attack_hints={"rate": 0.05},
    )


def samples_of(records: Records, look: Look, classes: tuple[str, ...] | None = None) -> Batch:
    """Images with label rows, their names and the names of all classes.

    Names of classes come from ``classes``, else from the file's metadata (``label_names``, or ``ClassLabel`` of the
    Hub), else they are what occurs, or the numbers up to the highest.

    Args:
        records: With the columns that ``look`` picks.
        look: How to read them.
        classes: All class names in the order of the model's outputs.

    Raises:
        BadData: A row holds no image or no list of classes.
        TooLarge: See `unbackdoor.files.reading.Limits`.
    """
    image_column, label_column = look.columns(list(records.columns))
    own = records.class_names.get(label_column) or records.class_names.get("") or ()
    what = f"column {label_column!r} of {records.source}"
    lists, names = records.columns[label_column], records.names
    rows, named = rows_of(lists, classes, what, names=names, own=own, order=look.order)
    images = decode(contents_of(records, image_column), names=names, size=look.size, fit=look.fit)
    return Batch(images.pixels, rows, names, named, images.notices)
