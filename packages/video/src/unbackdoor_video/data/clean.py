"""The defender's own labelled clips, from whatever file they lie in."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unbackdoor.arrays import LABEL_KEYS, as_labels, pick_arrays, read_arrays
from unbackdoor.errors import BadData, FileRefused
from unbackdoor.task import Batch
from unbackdoor_video.data.cache import ClipCache
from unbackdoor_video.data.decoding import Sampling
from unbackdoor_video.data.folder import list_folder
from unbackdoor_video.data.parquet import clips_of
from unbackdoor_video.data.reading import decode

__all__ = ["load_clean"]

_CLIP_KEYS = ("clips", "videos", "frames", "inputs", "x", "data")


def load_clean(
    source: str | Path,
    size: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    frames: int | None = None,
    every: int = 5,
    window: str = "centre",
    fit: str = "stretch",
    channels: int = 3,
    cache: str | None = None,
) -> tuple[Batch, tuple[str, ...]]:
    """Read labelled clips; nothing in the files is ever executed.

    Args:
        source: A folder with one folder of videos for each class; a ``.parquet`` file of frames; or an ``.npz``,
            ``.pt``, ``.pth`` or ``.safetensors`` file with tensors named ``clips`` and ``labels``. Clips in arrays are
            ``(n, frames, channels, height, width)``, ``uint8`` or floats in [0, 1].
        size: Side in pixels, of videos (None: 224) and Parquet (None: as they are).
        classes: All class names in the order of the model's outputs. Needed where a folder holds only some of them.
        frames: Frames of a clip, of videos (None: 16) and Parquet (None: all).
        every: One frame of so many is kept, of videos.
        window: ``"centre"``, ``"start"`` or ``"spread"``, of videos.
        fit: ``"stretch"`` or ``"crop"``, of videos.
        channels: 3 for RGB, 1 for grey, of videos and Parquet.
        cache: Folder in which decoded clips of videos are kept.

    Returns:
        The samples, and the class names in label order.

    Raises:
        FileRefused: There is nothing at ``source``.
        BadData: It cannot be read as labelled clips.
        UnsafeCheckpoint: The file would have to be unpickled.
    """
    path = Path(source)
    named = tuple(classes) if classes is not None else None
    if path.is_dir():
        how = Sampling(frames or 16, every, window, size or 224, fit, channels)
        videos, found = list_folder(path, named)
        return Batch(decode(videos.paths, how, ClipCache(cache)), torch.tensor(videos.labels)), found
    if not path.is_file():
        raise FileRefused(f"no clean data at {path}; give a folder of class folders, or a .parquet, .npz or .pt file.")
    if path.suffix == ".parquet":
        table = importlib.import_module("pyarrow.parquet").read_table(path)
        clips, labels, names = clips_of(table, frames=frames, size=size, channels=channels)
        return Batch(clips, labels), named or names
    tensors = read_arrays(path, "a folder", ".parquet")
    clips, labels = pick_arrays(tensors, path, {"clips": _CLIP_KEYS, "labels": LABEL_KEYS})
    clips = _checked(clips, path)
    found_labels = as_labels(labels, len(clips), path)
    return Batch(clips, found_labels), named or tuple(str(label) for label in range(int(found_labels.max()) + 1))


def _checked(clips: Tensor, path: Path) -> Tensor:
    if clips.ndim != 5 or clips.shape[2] not in (1, 3):
        raise BadData(
            f"clips in {path} have shape {tuple(clips.shape)}; expected (n, frames, channels, height, width) with 1 or "
            "3 channels."
        )
    if clips.is_floating_point():
        return clips.float()
    if int(clips.min()) < 0 or int(clips.max()) > 255:
        raise BadData(f"clips in {path} are {clips.dtype} beyond 0..255; save uint8 or floats in [0, 1].")
    return clips.to(torch.uint8)
