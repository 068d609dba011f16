"""The user's own samples in files of plain arrays; nothing in a file is ever executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unbackdoor.checkpoint import read
from unbackdoor.errors import BadData

__all__ = ["LABEL_KEYS", "as_labels", "pick_arrays", "read_arrays"]

LABEL_KEYS = ("labels", "label", "targets", "y")
"""Names under which files keep labels."""


def read_arrays(path: Path, *also: str) -> Mapping[str, Tensor]:
    """Tensors by name of an ``.npz``, ``.pt``, ``.pth`` or ``.safetensors`` file.

    Args:
        path: Of the file.
        *also: What else the caller can read, for the message.

    Raises:
        BadData: The file is of another kind, or its arrays would have to be unpickled.
        FileRefused: There is no such file.
        UnsafeCheckpoint: See `unbackdoor.checkpoint.read`.
    """
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
    known = ", ".join([*also, ".npz", ".pt", ".pth"])
    raise BadData(f"{path} is of no known kind; give {known} or .safetensors.")


def pick_arrays(tensors: Mapping[str, Tensor], path: Path, wanted: Mapping[str, Sequence[str]]) -> list[Tensor]:
    """One tensor for each name of ``wanted``, found under the first of its keys that the file has.

    Raises:
        BadData: One is not there.
    """
    found = [next((tensors[key] for key in keys if key in tensors), None) for keys in wanted.values()]
    given = [tensor for tensor in found if tensor is not None]
    if len(given) < len(found):
        names = " and ".join(wanted)
        held = ", ".join(tensors) or "nothing"
        raise BadData(f"{path} holds {held}; expected {len(wanted)} tensors named {names}.")
    return given


def as_labels(labels: Tensor, count: int, path: Path) -> Tensor:
    """Class indices, int64 of shape ``(count,)``.

    Raises:
        BadData: They are no whole numbers, or not one for each sample.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    if labels.is_floating_point() or labels.ndim != 1 or len(labels) != count:
        raise BadData(
            f"labels in {path} are {labels.dtype} of shape {tuple(labels.shape)}; expected {count} whole numbers."
        )
    return labels.long()
