"""Video files in one folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unbackdoor.errors import BadData, FileRefused
from unbackdoor.kit import Splits
from unbackdoor_video.data.decoding import ENDINGS, Sampling
from unbackdoor_video.data.reading import Listed, label_of, splits_of

__all__ = ["folder", "list_folder"]

_PARTS = ("test", "val", "valid", "validation")


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

    Raises:
        FileRefused: There is no such folder.
        BadData: It holds no class folders, or a video cannot be read.
    """
    if path is None:
        raise FileRefused("no path; give the folder that holds one folder of videos for each class.")
    how = Sampling(frames, every, window, size, fit, channels)
    root = Path(path)
    tests = [root / part for part in _PARTS if (root / part).is_dir()]
    nested = bool(tests) and (root / "train").is_dir()
    train, classes = list_folder(root / "train" if nested else root)
    test = list_folder(tests[0], classes)[0] if nested else None
    return splits_of(
        train,
        test,
        classes,
        how,
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        test_share=test_share,
        cache=cache,
        mapped=mapped,
        hints={"flip": flip},
    )


def list_folder(root: Path, classes: Sequence[str] | None = None) -> tuple[Listed, tuple[str, ...]]:
    """All videos below the class folders of ``root``, and the class names.

    Args:
        root: Holds one folder for each class.
        classes: All class names in the order of the model's outputs; folders may then be missing. None sorts the
            names of the folders as text.

    Raises:
        FileRefused: There is no such folder.
        BadData: It holds no videos, or a folder that is not among ``classes``.
    """
    if not root.is_dir():
        raise FileRefused(f"no folder at {root}; give one that holds a folder of videos for each class.")
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    known = tuple(names) if classes is None else tuple(classes)
    videos = Listed()
    for name in names:
        for path in sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in ENDINGS and p.is_file()):
            videos.add(path, label_of(name, known, root))
    if not len(videos):
        raise BadData(f"{root} holds no class folders with videos ({', '.join(ENDINGS)}).")
    return videos, known
