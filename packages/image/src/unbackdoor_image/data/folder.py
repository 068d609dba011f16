"""Image files in one folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import FileRefused
from unbackdoor.files.class_folders import find_parts, read_class_folders
from unbackdoor.task import Batch
from unbackdoor_image.data.splitting import splits
from unbackdoor_pixels.decoding import ENDINGS, decode

__all__ = ["folder", "read_folder"]


def folder(
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
    classes: Sequence[str] | None = None,
    order: str | None = None,
) -> Splits:
    """Class sub-folders as torchvision's ``ImageFolder`` reads them, with or without ``train`` and ``test`` above.

    Args:
        seed: Of the split.
        path: The folder that holds one folder for each class, or ``train`` and ``test`` (or ``val``).
        clean_share: Share of the training part that the defender holds; None means 1 %.
        clean_count: Their number instead.
        size: Side in pixels; None asks that all images have one size.
        fit: ``"stretch"`` or ``"crop"``.
        channels: 3 for RGB, 1 for grey.
        flip: Whether mirrored images keep their class; becomes a hint.
        test_share: Share of the test part where there is no folder for it.
        classes: All class names in the order of the model's outputs; folders may then be missing.
        order: See `read_folder`.

    Raises:
        FileRefused: There is no such folder.
        BadData: It holds no class folders, or images cannot be read.
    """
    if path is None:
        raise FileRefused("no path; give the folder that holds one folder of images for each class.")
    train_root, test_root = find_parts(path, "images")
    train = read_folder(train_root, size, fit, channels, classes=classes, order=order)
    test = None
    if test_root is not None:
        by_number = order == "number" and classes is None  # in either part a folder's number is its label
        known = None if by_number else train.classes
        test = read_folder(test_root, size, fit, channels, classes=known, order=order)
    return splits(
        train,
        test,
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        test_share=test_share,
        flip=flip,
    )


def read_folder(
    root: str | Path,
    size: int | None = None,
    fit: str = "stretch",
    channels: int = 3,
    *,
    classes: Sequence[str] | None = None,
    order: str | None = None,
) -> Batch:
    """All images below the class folders of ``root`` with their labels, file names and class names.

    Args:
        root: Holds one folder for each class.
        size: Side in pixels.
        fit: ``"stretch"`` or ``"crop"``.
        channels: 3 or 1.
        classes: All class names in the order of the model's outputs; folders may then be missing.
        order: How folders whose names are numbers become labels: ``"text"`` sorts them as torchvision does (0, 1, 10,
            2), ``"number"`` takes the number itself. None is refused where the two differ.

    Raises:
        FileRefused: There is no such folder.
        BadData: There are no class folders, one is not among ``classes``, the order is in doubt, or an image cannot be
            read.
        BadOption: An option is not allowed.
    """
    found = read_class_folders(root, ENDINGS, what="images", classes=classes, order=order)
    images = decode(found.files, names=found.names, size=size, fit=fit, channels=channels)
    return Batch(images.pixels, found.labels, found.names, found.classes, (*found.notices, *images.notices))
