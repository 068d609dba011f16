"""Data sets of the Hugging Face Hub; needs the package ``datasets`` and, the first time, a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import FileRefused
from unbackdoor.files.class_names import given_classes
from unbackdoor_image.data.parquet import Look, samples_of
from unbackdoor_image.data.splitting import splits
from unbackdoor_pixels.hub import hub_records

__all__ = ["PACKAGE", "hub"]

PACKAGE = "unbackdoor-image"


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
    classes: Sequence[str] | None = None,
    order: str | None = None,
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
        classes: All class names in the order of the model's outputs; None takes those of the data.
        order: For labels that are numbers as text, see `unbackdoor.files.class_names.place_names`.

    Raises:
        FileRefused: ``datasets`` is not installed, or it cannot load the data.
        BadData: The columns cannot be read.
    """
    if path is None:
        raise FileRefused("no path; give the data set's name on the Hub, such as uoft-cs/cifar10.")
    look = Look(size, fit, channels, image_column, label_column, order)
    train = samples_of(hub_records(str(path), train_split, look.pick, PACKAGE), look, given_classes(classes))
    test = None
    if test_split is not None:
        test = samples_of(hub_records(str(path), test_split, look.pick, PACKAGE), look, train.classes)
    return splits(train, test, seed=seed, clean_share=clean_share, clean_count=clean_count, flip=flip)
