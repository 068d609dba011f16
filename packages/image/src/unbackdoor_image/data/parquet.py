"""Parquet files as the Hugging Face Hub stores image data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import FileRefused
from unbackdoor.files.class_names import given_classes
from unbackdoor.task import Batch
from unbackdoor_image.data.splitting import splits
from unbackdoor_pixels.columns import column_of, contents_of, labels_of
from unbackdoor_pixels.decoding import decode
from unbackdoor_pixels.tables import Records, read_parts

__all__ = ["Look", "parquet", "samples_of"]

_IMAGE_COLUMNS = ("img", "image", "images", "pixel_values", "jpg", "png")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "cls")


@dataclass(frozen=True)
class Look:
    """How images are read out of a table.

    Attributes:
        size: Side in pixels; None keeps the images' own.
        fit: ``"stretch"`` or ``"crop"``, see `unbackdoor_pixels.decoding.decode`.
        channels: 3 for RGB, 1 for grey.
        image_column: Column of the images; None finds it.
        label_column: Column of the labels; None finds it.
        order: For labels that are numbers as text, see `unbackdoor.files.class_names.place_names`.
    """

    size: int | None = None
    fit: str = "stretch"
    channels: int = 3
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
    size: int | None = None,
    fit: str = "stretch",
    channels: int = 3,
    flip: bool = False,
    test_share: float = 0.2,
    image_column: str | None = None,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    order: str | None = None,
) -> Splits:
    """Any labelled images in Parquet: a file, or a folder with training and test files.

    Files with test or val in their names are the test part; else a column ``split`` with train and test (or val) names
    the parts; else a share of the samples becomes the test part. Images are a struct with ``bytes``, or bytes.

    Args:
        seed: Of the split.
        path: File or folder.
        clean_share: Share of the training part that the defender holds; None means 1 %.
        clean_count: Their number instead.
        size: Side in pixels; None keeps the images' own.
        fit: ``"stretch"`` or ``"crop"``, see `unbackdoor_pixels.decoding.decode`.
        channels: 3 for RGB, 1 for grey.
        flip: Whether mirrored images keep their class; becomes a hint.
        test_share: Share of the test part where the data name none.
        image_column: Column of the images; None finds it by its name.
        label_column: Column of the class indices or names; None finds it.
        classes: All class names in the order of the model's outputs; None takes those of the file.
        order: For labels that are numbers as text, see `unbackdoor.files.class_names.place_names`.

    Raises:
        FileRefused: There is no such file.
        BadData: The columns cannot be read.
    """
    if path is None:
        raise FileRefused("no path; give the Parquet file or the folder that holds the files.")
    look = Look(size, fit, channels, image_column, label_column, order)
    found, tested = read_parts(Path(path), look.pick)
    train = samples_of(found, look, given_classes(classes))
    test = None if tested is None else samples_of(tested, look, train.classes if _named(train) else None)
    return splits(
        train,
        test,
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        test_share=test_share,
        flip=flip,
    )


def _named(samples: Batch) -> bool:
    """Whether classes have names; numbers say nothing of classes that occur in the test part alone."""
    classes = samples.classes or ()
    return classes != tuple(map(str, range(len(classes))))


def samples_of(records: Records, look: Look, classes: tuple[str, ...] | None = None) -> Batch:
    """Images with their labels, names and the names of all classes.

    Args:
        records: With the columns that ``look`` picks.
        look: How to read them.
        classes: See `unbackdoor_pixels.columns.labels_of`.

    Raises:
        BadData: A row holds no image or no label.
        TooLarge: See `unbackdoor.files.reading.Limits`.
    """
    image_column, label_column = look.columns(list(records.columns))
    labels, named = labels_of(records, label_column, classes, look.order)
    images = decode(
        contents_of(records, image_column),
        names=records.names,
        size=look.size,
        fit=look.fit,
        channels=look.channels,
    )
    return Batch(images.pixels, labels, records.names, named, images.notices)
