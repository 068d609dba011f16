"""The user's own samples in files of plain arrays; nothing in a file is ever executed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unbackdoor.checkpoint import read
from unbackdoor.errors import BadData, CheckpointMismatch
from unbackdoor.files.reading import check_bytes, check_classes, check_file, read_npz, reading, shown

__all__ = ["LABEL_KEYS", "as_labels", "pick_arrays", "read_arrays"]

LABEL_KEYS = ("labels", "label", "targets", "y")
"""Names under which files keep labels."""


class _Arrays(Mapping[str, Tensor]):
    """Arrays of numpy by name; those that are no numbers are refused when they are asked for."""

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self.path, self.arrays = path, arrays

    def __getitem__(self, name: str) -> Tensor:
        array = self.arrays[name]
        if array.dtype.kind not in "biufc":
            raise BadData(f"{shown(name)} in {self.path} holds {array.dtype}, which are no numbers; save numbers.")
        with reading(f"{self.path} ({shown(name)})", "save it as another type of number"):
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def read_arrays(path: Path, *also: str) -> Mapping[str, Tensor]:
    """Tensors by name of an ``.npz``, ``.pt``, ``.pth`` or ``.safetensors`` file.

    Args:
        path: Of the file.
        *also: What else the caller can read, for the message.

    Raises:
        BadData: The file is damaged or of another kind, or its arrays would have to be unpickled.
        TooLarge: It declares more than the limits allow.
        FileRefused: There is no such file.
        UnsafeCheckpoint: See `unbackdoor.checkpoint.read`.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _Arrays(path, read_npz(path))
    if suffix in (".pt", ".pth", ".safetensors"):
        check_file(path)
        try:
            with reading(path):
                return read(path)[0]
        except CheckpointMismatch as error:
            raise BadData(
                f"{path} holds no tensors by name; save those of the samples: {{name: tensor, ...}}."
            ) from error
    known = ", ".join([*also, ".npz", ".pt", ".pth"])
    raise BadData(f"{path} is of no known kind; give {known} or .safetensors.")


def pick_arrays(tensors: Mapping[str, Tensor], path: Path, wanted: Mapping[str, Sequence[str]]) -> list[Tensor]:
    """One tensor for each name of ``wanted``, found under the first of its keys that the file has.

    Raises:
        BadData: One is not there, or is no dense array.
        TooLarge: One repeats what the file holds beyond the limits.
    """
    chosen = [next((key for key in keys if key in tensors), None) for keys in wanted.values()]
    found = [(key, tensors[key]) for key in chosen if key is not None]
    if len(found) < len(chosen):
        names = " and ".join(wanted)
        held = ", ".join(map(shown, tensors)) or "nothing"
        raise BadData(f"{path} holds {held}; expected {len(wanted)} tensors named {names}.")
    for key, tensor in found:
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise BadData(f"{shown(key)} in {path} is a sparse, quantised or empty tensor; save a plain one.")
        stored = path.stat().st_size if path.exists() else None
        check_bytes(f"{shown(key)} in {path}", tensor.numel() * tensor.element_size(), stored)
    return [tensor for _, tensor in found]


def as_labels(labels: Tensor, count: int, path: Path) -> Tensor:
    """Class indices, int64 of shape ``(count,)``.

    Raises:
        BadData: They are no whole numbers from 0, or not one for each sample.
        TooLarge: One is beyond `unbackdoor.files.reading.Limits.classes`.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool)
    if not whole or labels.ndim != 1 or len(labels) != count:
        raise BadData(
            f"labels in {path} are {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}; expected "
            f"{count} whole numbers, the class of each sample: labels.astype('int64')."
        )
    if count:
        values = labels.numpy()  # of unsigned numbers torch knows no minimum
        lowest, highest = int(values.min()), int(values.max())
        if lowest < 0:
            raise BadData(
                f"labels in {path} go down to {lowest} (sample {int(values.argmin())}), but classes count from 0; "
                "leave out samples without a class."
            )
        check_classes(path, highest + 1)
    return labels.to(torch.int64)
