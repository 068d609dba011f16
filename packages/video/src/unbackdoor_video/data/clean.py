"""The defender's own labelled clips, from whatever file they lie in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unbackdoor.arrays import LABEL_KEYS, as_labels, pick_arrays, read_arrays
from unbackdoor.errors import BadData, FileRefused
from unbackdoor.files.class_folders import read_class_folders
from unbackdoor.files.class_names import given_classes, names_of
from unbackdoor.files.reading import shown
from unbackdoor.task import Batch
from unbackdoor_pixels.arrays import as_levels
from unbackdoor_pixels.tables import read_records
from unbackdoor_video.data.cache import ClipCache
from unbackdoor_video.data.containers import ENDINGS
from unbackdoor_video.data.decoding import Sampling
from unbackdoor_video.data.parquet import clips_of, columns
from unbackdoor_video.data.reading import decode

__all__ = ["load_clean"]

_CLIP_KEYS = ("clips", "videos", "frames", "inputs", "x", "data")


def load_clean(
    source: str | Path,
    size: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    order: str | None = None,
    frames: int | None = None,
    every: int = 5,
    window: str = "centre",
    fit: str = "stretch",
    channels: int = 3,
    cache: str | None = None,
    frames_column: str | None = None,
    label_column: str | None = None,
) -> tuple[Batch, tuple[str, ...]]:
    """Read labelled clips; nothing in the files is ever executed.

    Args:
        source: A folder with one folder of videos for each class; a ``.parquet`` file of frames; or an ``.npz``,
            ``.pt``, ``.pth`` or ``.safetensors`` file with tensors named ``clips`` and ``labels``. Clips in arrays are
            ``(n, frames, channels, height, width)``, ``uint8`` or floats in [0, 1].
        size: Side in pixels, of videos (None: 224) and Parquet (None: as they are).
        classes: All class names in the order of the model's outputs. Needed where a folder holds only some of them.
        order: For class folders, or labels of Parquet, named by numbers: ``"text"`` or ``"number"``.
        frames: Frames of a clip, of videos (None: 16) and Parquet (None: all).
        every: One frame of so many is kept, of videos.
        window: ``"centre"``, ``"start"`` or ``"spread"``, of videos.
        fit: ``"stretch"`` or ``"crop"``, of videos.
        channels: 3 for RGB, 1 for grey, of videos and Parquet.
        cache: Folder in which decoded clips of videos are kept.
        frames_column: Of the lists of frames in Parquet; None finds it.
        label_column: Of the labels in Parquet; None finds it.

    Returns:
        The samples, and the class names in label order.

    Raises:
        FileRefused: There is nothing at ``source``.
        BadData: It cannot be read as labelled clips.
        BadOption: An option is not allowed.
        TooLarge: It declares or unpacks to more than the limits allow.
        UnsafeCheckpoint: The file would have to be unpickled.
    """
    path, named = Path(source), given_classes(classes)
    if path.is_dir():
        how = Sampling(frames or 16, every, window, size or 224, fit, channels)
        videos = read_class_folders(path, ENDINGS, what="videos", classes=named, order=order)
        clips = decode(videos.files, how, ClipCache(cache))
        return Batch(clips, videos.labels, videos.names, videos.classes, videos.notices), videos.classes
    if not path.exists():
        raise FileRefused(
            f"no clean data at {shown(path)}; give a folder of class folders, or a .parquet, .npz or .pt file."
        )
    if path.suffix.lower() == ".parquet":
        pick = columns(frames_column, label_column)
        batch = clips_of(read_records([path], pick), pick, frames, size, channels, classes=named, order=order)
        return batch, batch.classes or ()
    tensors = read_arrays(path, "a folder", ".parquet")
    clips, labels = pick_arrays(tensors, path, {"clips": _CLIP_KEYS, "labels": LABEL_KEYS})
    if clips.ndim != 5 or clips.shape[2] not in (1, 3):
        raise BadData(
            f"clips in {shown(path)} have shape {tuple(clips.shape)}; expected (n, frames, channels, height, width) "
            "with 1 or 3 channels."
        )
    levels, notices = as_levels(clips, path, "clips")
    found = as_labels(labels, len(clips), path)
    known = names_of(found, named, shown(path))
    return Batch(levels, found, None, known, notices), known
