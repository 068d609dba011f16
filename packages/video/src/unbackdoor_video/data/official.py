"""UCF-101 and HMDB51 from their official folders and split files, and Kinetics from its CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from unbackdoor.errors import BadData, BadOption, FileRefused
from unbackdoor.kit import Splits
from unbackdoor_video.data.decoding import ENDINGS, Sampling
from unbackdoor_video.data.reading import Listed, label_of, splits_of

__all__ = ["hmdb51", "kinetics", "ucf101"]


def ucf101(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    split: int = 1,
    annotations: str | None = None,
    frames: int = 16,
    every: int = 5,
    window: str = "centre",
    size: int = 224,
    fit: str = "stretch",
    cache: str | None = None,
    mapped: bool = False,
    allow_missing: bool = False,
) -> Splits:
    """UCF-101: ``path`` holds the class folders; ``annotations`` the split files ``trainlist01.txt`` and so on.

    Clips of one film (the ``g..`` of a name) are held out together.

    Args:
        seed: Of the split.
        path: The folder of class folders (``UCF-101``), or the one above it.
        clean_share: Share of the training part that the defender holds; None means 5 %.
        clean_count: Their number instead.
        split: 1, 2 or 3.
        annotations: Folder of the split files (``ucfTrainTestlist``); None looks for it beside the videos.
        frames: Frames of a clip.
        every: One frame of so many is kept.
        window: ``"centre"``, ``"start"`` or ``"spread"``, see `Sampling`.
        size: Side in pixels.
        fit: ``"stretch"`` or ``"crop"``.
        cache: Folder in which decoded clips are kept; None decodes anew each time.
        mapped: Keep clips in files of the cache, not in memory.
        allow_missing: Go on where listed videos are not there.

    Raises:
        FileRefused: Videos or split files are not there.
        BadData: A split file cannot be read, or a video.
    """
    how = Sampling(frames, every, window, size, fit)
    root, lists = _places(path, annotations, "trainlist01.txt", "ucfTrainTestlist", split)
    classes = tuple(line.split()[1] for line in _lines(lists / "classInd.txt"))
    parts = {}
    for part in ("train", "test"):
        file, videos = lists / f"{part}list{split:02d}.txt", Listed()
        for line in _lines(file):
            name = line.split()[0]
            found = re.search(r"_g(\d+)_c\d+", name)
            group = int(found[1]) if found else None
            videos.add(root / name, label_of(name.split("/")[0], classes, file), group if part == "train" else None)
        if len(videos.groups) != len(videos):
            videos.groups = []
        parts[part] = videos.there(allow_missing)
    share = {"seed": seed, "clean_share": clean_share, "clean_count": clean_count}
    return splits_of(parts["train"], parts["test"], classes, how, **share, cache=cache, mapped=mapped)  # type: ignore[arg-type]


def hmdb51(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    split: int = 1,
    annotations: str | None = None,
    frames: int = 16,
    every: int = 5,
    window: str = "centre",
    size: int = 224,
    fit: str = "stretch",
    cache: str | None = None,
    mapped: bool = False,
    allow_missing: bool = False,
) -> Splits:
    """HMDB51: ``path`` holds the class folders; ``annotations`` the files ``CLASS_test_split1.txt`` and so on.

    Args:
        seed: Of the split.
        path: The folder of class folders.
        clean_share: Share of the training part that the defender holds; None means 5 %.
        clean_count: Their number instead.
        split: 1, 2 or 3.
        annotations: Folder of the split files (``testTrainMulti_7030_splits``); None looks for it beside the videos.
        frames: Frames of a clip.
        every: One frame of so many is kept.
        window: ``"centre"``, ``"start"`` or ``"spread"``, see `Sampling`.
        size: Side in pixels.
        fit: ``"stretch"`` or ``"crop"``.
        cache: Folder in which decoded clips are kept; None decodes anew each time.
        mapped: Keep clips in files of the cache, not in memory.
        allow_missing: Go on where listed videos are not there.

    Raises:
        FileRefused: Videos or split files are not there.
        BadData: A split file cannot be read, or a video.
    """
    how = Sampling(frames, every, window, size, fit)
    ending = f"_test_split{split}.txt"
    root, lists = _places(path, annotations, f"*{ending}", "testTrainMulti_7030_splits", split)
    files = sorted(lists.glob(f"*{ending}"))
    classes = tuple(file.name.removesuffix(ending) for file in files)
    parts = {"1": Listed(), "2": Listed()}
    for label, file in enumerate(files):
        for line in _lines(file):
            name, _, kind = line.rpartition(" ")
            if kind not in ("0", "1", "2"):
                raise BadData(f"{file} has a line {line!r}; expected a file and 0 (unused), 1 (train) or 2 (test).")
            if kind != "0":
                parts[kind].add(root / classes[label] / name.strip(), label)
    train, test = (parts[kind].there(allow_missing) for kind in ("1", "2"))
    share = {"seed": seed, "clean_share": clean_share, "clean_count": clean_count}
    return splits_of(train, test, classes, how, **share, cache=cache, mapped=mapped)  # type: ignore[arg-type]


def kinetics(
    *,
    seed: int = 0,
    path: str | Path | None = None,
    clean_share: float | None = None,
    clean_count: int | None = None,
    train_csv: str = "train.csv",
    test_csv: str = "val.csv",
    frames: int = 16,
    every: int = 5,
    window: str = "centre",
    size: int = 224,
    fit: str = "stretch",
    cache: str | None = None,
    mapped: bool = False,
    allow_missing: bool = False,
    test_share: float = 0.2,
) -> Splits:
    """Videos in CSV lists as Kinetics has them (label, youtube_id, time_start, time_end, split), or of path and label.

    Files are looked for below ``path`` as ``ID_000010_000020.mp4`` or ``ID.mp4`` (any ending), in a folder of the split
    or of the class or in none. Clips of one ``youtube_id`` are held out together.

    Args:
        seed: Of the split.
        path: Folder of the videos.
        clean_share: Share of the training part that the defender holds; None means 5 %.
        clean_count: Their number instead.
        train_csv: List of the training part, relative to ``path`` or absolute.
        test_csv: List of the test part; where it is missing, a column ``split`` or a share of the first says.
        frames: Frames of a clip.
        every: One frame of so many is kept.
        window: ``"centre"``, ``"start"`` or ``"spread"``, see `Sampling`.
        size: Side in pixels.
        fit: ``"stretch"`` or ``"crop"``.
        cache: Folder in which decoded clips are kept; None decodes anew each time.
        mapped: Keep clips in files of the cache, not in memory.
        allow_missing: Go on where listed videos are not there, as is usual for Kinetics.
        test_share: Share of the test part where nothing says which it is.

    Raises:
        FileRefused: Lists or videos are not there.
        BadData: A list cannot be read, or a video.
    """
    if path is None:
        raise FileRefused("no path; give the folder of the videos, with their lists in CSV.")
    root, how = Path(path), Sampling(frames, every, window, size, fit)
    rows = _rows(root / train_csv)
    others = _rows(root / test_csv) if (root / test_csv).is_file() else []
    if not others:
        others = [row for row in rows if row.get("split", "") in ("val", "validate", "validation", "test")]
        rows = [row for row in rows if row not in others]
    classes = tuple(sorted({row["label"] for row in rows}))
    stems = {file.stem: file for file in sorted(root.rglob("*")) if file.suffix.lower() in ENDINGS}
    ids = {name: number for number, name in enumerate(sorted({row.get("youtube_id", "") for row in rows}))}

    def listed(part: list[Mapping[str, str]], grouped: bool) -> Listed:
        videos = Listed()
        for row in part:
            group = ids.get(row.get("youtube_id", "")) if grouped and row.get("youtube_id") else None
            videos.add(_video_of(row, root, stems), label_of(row["label"], classes, root), group)
        if len(videos.groups) != len(videos):
            videos.groups = []
        return videos.there(allow_missing)

    return splits_of(
        listed(rows, True),
        listed(others, False) if others else None,
        classes,
        how,
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        test_share=test_share,
        cache=cache,
        mapped=mapped,
    )


def _video_of(row: Mapping[str, str], root: Path, stems: Mapping[str, Path]) -> Path:
    if row.get("path"):
        return root / row["path"]
    name = row["youtube_id"]
    times = [round(float(row[key])) for key in ("time_start", "time_end") if row.get(key)]
    cut = f"{name}_{times[0]:06d}_{times[1]:06d}" if len(times) == 2 else name
    return stems.get(cut) or stems.get(name) or root / f"{cut}.mp4"


def _rows(file: Path) -> list[Mapping[str, str]]:
    if not file.is_file():
        raise FileRefused(f"no list of videos at {file}; give its name as train_csv=....")
    with file.open(newline="", encoding="utf-8") as lines:
        rows = [
            {(key or "").strip(): (value or "").strip() for key, value in row.items()} for row in csv.DictReader(lines)
        ]
    if not rows or "label" not in rows[0] or not {"youtube_id", "path"} & set(rows[0]):
        held = ", ".join(rows[0]) if rows else "no row"
        raise BadData(f"{file} holds {held}; expected columns label and youtube_id (or path).")
    return [dict(row) for row in rows]


def _places(path: str | Path | None, annotations: str | None, some: str, usual: str, split: int) -> tuple[Path, Path]:
    """The folder of class folders and that of the split files."""
    if split not in (1, 2, 3):
        raise BadOption(f"split is {split}; there are 1, 2 and 3.")
    if path is None:
        raise FileRefused("no path; give the folder that holds the class folders of videos.")
    root = Path(path)
    tried = [Path(annotations)] if annotations else [root, root / usual, root.parent / usual]
    lists = next((folder for folder in tried if any(folder.glob(some))), None)
    if lists is None:
        raise FileRefused(f"no split files ({some}) in {', '.join(map(str, tried))}; give annotations=FOLDER.")
    inner = root / "UCF-101"
    return (inner if inner.is_dir() else root), lists


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise FileRefused(f"no split file at {file}; give annotations=FOLDER that holds it.")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line]
    if not found:
        raise BadData(f"{file} is empty.")
    return found
