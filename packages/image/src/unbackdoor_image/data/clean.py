"""The defender's own labelled images, from whatever file they lie in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbackdoor.arrays import LABEL_KEYS, as_labels, pick_arrays, read_arrays
from unbackdoor.errors import FileRefused
from unbackdoor.files.class_names import given_classes, names_of
from unbackdoor.files.reading import shown
from unbackdoor.task import Batch
from unbackdoor_image.data.folder import read_folder
from unbackdoor_image.data.parquet import Look, samples_of
from unbackdoor_pixels.arrays import as_images
from unbackdoor_pixels.decoding import check_size
from unbackdoor_pixels.tables import read_records

__all__ = ["load_clean"]

_IMAGE_KEYS = ("images", "image", "inputs", "x", "data")


def load_clean(
    source: str | Path,
    size: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    order: str | None = None,
    fit: str = "stretch",
    channels: int = 3,
    image_column: str | None = None,
    label_column: str | None = None,
    layout: str | None = None,
) -> tuple[Batch, tuple[str, ...]]:
    """Read labelled images; nothing in the files is ever executed.

    Args:
        source: A folder with one folder of images for each class; a ``.parquet`` file; or an ``.npz``, ``.pt``,
            ``.pth`` or ``.safetensors`` file with tensors named ``images`` and ``labels``. Images in arrays are
            ``(n, height, width, channels)`` or ``(n, channels, height, width)``, ``uint8`` or floats in [0, 1].
        size: Side in pixels; None keeps the images' own.
        classes: All class names in the order of the model's outputs. Needed where the data hold only some of them.
        order: For folders or labels named by numbers, see `unbackdoor_image.data.folder.read_folder`.
        fit: ``"stretch"`` or ``"crop"``, of image files.
        channels: 3 for RGB, 1 for grey, of image files.
        image_column: Column of the images in Parquet; None finds it by its name.
        label_column: Column of the labels in Parquet; None finds it.
        layout: ``"channels_first"`` or ``"channels_last"``, of arrays; None tells by their shape.

    Returns:
        The samples, with their names and notices of what was left out, and the class names in label order.

    Raises:
        FileRefused: There is nothing at ``source``.
        BadData: It cannot be read as labelled images.
        TooLarge: It exceeds a limit, see `unbackdoor.files.reading.limited`.
        BadOption: An option is not allowed.
        UnsafeCheckpoint: The file would have to be unpickled.
    """
    path, named = Path(source), given_classes(classes)
    if path.is_dir():
        batch = read_folder(path, size, fit, channels, classes=named, order=order)
    elif not path.is_file():
        raise FileRefused(
            f"no clean data at {shown(path)}; give a folder of class folders, or a .parquet, .npz, .pt, .pth or "
            ".safetensors file."
        )
    elif path.suffix.lower() == ".parquet":
        look = Look(size, fit, channels, image_column, label_column, order)
        batch = samples_of(read_records([path], look.pick), look, named)
    else:
        batch = _of_arrays(path, size, named, layout)
    assert batch.classes is not None
    return batch, batch.classes


def _of_arrays(path: Path, size: int | None, classes: tuple[str, ...] | None, layout: str | None) -> Batch:
    check_size(size)
    tensors = read_arrays(path, "a folder", ".parquet")
    images, labels = pick_arrays(tensors, path, {"images": _IMAGE_KEYS, "labels": LABEL_KEYS})
    images, notices = as_images(images, path, layout)
    labels = as_labels(labels, len(images), path)
    if size is not None and tuple(images.shape[-2:]) != (size, size):
        images = _resized(images, size)
    names = tuple(f"{shown(path.name)} image {place}" for place in range(len(images)))
    return Batch(images, labels, names, names_of(labels, classes, path), notices)


def _resized(images: Tensor, size: int) -> Tensor:
    options: dict[str, Any] = {"mode": "bilinear", "antialias": True}
    resized = torch.nn.functional.interpolate(images.float(), (size, size), **options)
    return resized if images.is_floating_point() else resized.round().clamp(0, 255).to(torch.uint8)
