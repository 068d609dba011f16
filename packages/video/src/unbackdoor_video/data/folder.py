"""Video files in one folder for each class."""

from __future__ import annotations

from pathlib import Path

from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import FileRefused
from unbackdoor.files.class_folders import find_parts, read_class_folders
from unbackdoor_video.data.containers import ENDINGS
from unbackdoor_video.data.decoding import Sampling
from unbackdoor_video.data.reading import Listed, splits_of

__all__ = ["folder"]


def folder(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    frames: int = 16,
    every: int = 5,
    window: str = "centre",
    size: int = 224,
    fit: str = "stretch",
    channels: int = 3,
    cache: str | None = None,
    mapped: bool = False,
    flip: bool = False,
    test_share: float = 0.2,
    order: str | None = None,
) -> Splits:
    """Video files in class sub-folders, with or without ``train`` and ``test`` (or ``val``) above.

    Args:
        seed: Of the split.
        path: The folder that holds one folder for each class, or ``train`` and ``test``.
        clean_share: Share of the training part that the defender holds; None means 5 %.
        clean_count: Their number instead.
        frames: Frames of a clip.
        every: One frame of so many is kept.
        window: ``"centre"``, ``"start"`` or ``"spread"``, see `Sampling`.
        size: Side in pixels.
        fit: ``"stretch"`` or ``"crop"``.
        channels: 3 for RGB, 1 for grey.
        cache: Folder in which decoded clips are kept; None decodes anew each time.
        mapped: Keep clips in files of the cache, not in memory.
        flip: Whether mirrored clips keep their class; becomes a hint.
        test_share: Share of the test part where there is no folder for it.
        order: For class folders named by numbers: ``"text"`` or ``"number"``.

    Raises:
        FileRefused: There is no such folder.
        BadData: It holds no class folders, a label is in doubt, or a video cannot be read.
    """
    if path is None:
        raise FileRefused("no path; give the folder that holds one folder of videos for each class.")
    how = Sampling(frames, every, window, size, fit, channels)
    train_folder, test_folder = find_parts(path, "videos")
    train = read_class_folders(train_folder, ENDINGS, what="videos", order=order)
    test = None
    if test_folder is not None:
        found = read_class_folders(test_folder, ENDINGS, what="videos", classes=train.classes)
        test = Listed(list(found.files), found.labels.tolist())
    return splits_of(
        Listed(list(train.files), train.labels.tolist()),
        test,
        train.classes,
        how,
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        test_share=test_share,
        cache=cache,
        mapped=mapped,
        hints={"flip": flip},
        notices=train.notices,
    )
