"""The defender's own labelled images, from whatever file they lie in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbackdoor.arrays import LABEL_KEYS, as_labels, pick_arrays, read_arrays
from unbackdoor.errors import BadData, FileRefused
from unbackdoor.task import Batch
from unbackdoor_image.data.folder import read_folder
from unbackdoor_image.data.parquet import images_of, read_table

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
) -> tuple[Batch, tuple[str, ...]]:
    """Read labelled images; nothing in the files is ever executed.

    Args:
        source: A folder with one folder of images for each class; a ``.parquet`` file; or an ``.npz``, ``.pt``,
            ``.pth`` or ``.safetensors`` file with tensors named ``images`` and ``labels``. Images in arrays are
            ``(n, height, width, channels)`` or ``(n, channels, height, width)``, ``uint8`` or floats in [0, 1].
        size: Side in pixels; None keeps the images' own.
        classes: All class names in the order of the model's outputs. Needed where a folder holds only some of them.
        order: For folders named by numbers, see `unbackdoor_image.data.folder.read_folder`.
        fit: ``"stretch"`` or ``"crop"``, of image files.
        channels: 3 for RGB, 1 for grey, of image files.

    Returns:
        The samples, and the class names in label order.

    Raises:
        FileRefused: There is nothing at ``source``.
        BadData: It cannot be read as labelled images.
        UnsafeCheckpoint: The file would have to be unpickled.
    """
    path = Path(source)
    named = tuple(classes) if classes is not None else None
    if path.is_dir():
        found = read_folder(path, size, fit, channels, classes=named, order=order)
        return Batch(found[0], found[1]), found[2]
    if not path.is_file():
        raise FileRefused(f"no clean data at {path}; give a folder of class folders, or a .parquet, .npz or .pt file.")
    if path.suffix == ".parquet":
        table = read_table([path])
        images, labels, names = images_of(table, classes=named or (), size=size, fit=fit, channels=channels)
        return Batch(images, labels), named or names
    images, labels = _images_and_labels(read_arrays(path, "a folder", ".parquet"), path)
    if size is not None and tuple(images.shape[-2:]) != (size, size):
        images = _resized(images, size)
    return Batch(images, labels), named or tuple(str(label) for label in range(int(labels.max()) + 1))


def _images_and_labels(tensors: Mapping[str, Tensor], path: Path) -> tuple[Tensor, Tensor]:
    images, labels = pick_arrays(tensors, path, {"images": _IMAGE_KEYS, "labels": LABEL_KEYS})
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise BadData(f"images in {path} have shape {tuple(images.shape)}; expected (n, height, width, channels).")
    if images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if images.dtype is not torch.uint8:
        images = _as_unit(images, path)
    return images.contiguous(), as_labels(labels, len(images), path)


def _as_unit(images: Tensor, path: Path) -> Tensor:
    if images.is_floating_point():
        return images.float()
    if int(images.min()) < 0 or int(images.max()) > 255:
        raise BadData(f"images in {path} are {images.dtype} beyond 0..255; save uint8 or floats in [0, 1].")
    return images.to(torch.uint8)


def _resized(images: Tensor, size: int) -> Tensor:
    options: dict[str, Any] = {"mode": "bilinear", "antialias": True}
    resized = torch.nn.functional.interpolate(images.float(), (size, size), **options)
    return resized if images.is_floating_point() else resized.round().clamp(0, 255).to(torch.uint8)
