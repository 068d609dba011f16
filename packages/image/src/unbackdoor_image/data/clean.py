"""The defender's own labelled images, from whatever file they lie in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbackdoor.checkpoint import read
from unbackdoor.errors import BadData, FileRefused
from unbackdoor.task import Batch
from unbackdoor_image.data.folder import read_folder
from unbackdoor_image.data.parquet import images_of, read_table

__all__ = ["load_clean"]

_IMAGE_KEYS = ("images", "image", "inputs", "x", "data")
_LABEL_KEYS = ("labels", "label", "targets", "y")


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
    images, labels = _images_and_labels(_tensors(path), path)
    if size is not None and tuple(images.shape[-2:]) != (size, size):
        images = _resized(images, size)
    return Batch(images, labels), named or tuple(str(label) for label in range(int(labels.max()) + 1))


def _tensors(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        except (ValueError, TypeError) as error:
            raise BadData(
                f"{path} cannot be read without unpickling ({error}); save plain arrays with np.savez."
            ) from error
    if path.suffix in (".pt", ".pth", ".safetensors"):
        return read(path)[0]
    raise BadData(f"{path} is of no known kind; give .parquet, .npz, .pt, .pth, .safetensors or a folder.")


def _images_and_labels(tensors: Mapping[str, Tensor], path: Path) -> tuple[Tensor, Tensor]:
    images = next((tensors[key] for key in _IMAGE_KEYS if key in tensors), None)
    labels = next((tensors[key] for key in _LABEL_KEYS if key in tensors), None)
    if images is None or labels is None:
        raise BadData(f"{path} holds {', '.join(tensors) or 'nothing'}; expected two tensors named images and labels.")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise BadData(f"images in {path} have shape {tuple(images.shape)}; expected (n, height, width, channels).")
    if images.shape[-1] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if images.dtype is not torch.uint8:
        images = _as_unit(images, path)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if labels.is_floating_point() or labels.ndim != 1 or len(labels) != len(images):
        raise BadData(
            f"labels in {path} are {labels.dtype} of shape {tuple(labels.shape)}; expected {len(images)} whole numbers."
        )
    return images.contiguous(), labels.long()


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
