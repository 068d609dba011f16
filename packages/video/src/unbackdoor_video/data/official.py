"""UCF-101 and HMDB51 from their official folders and split files, and Kinetics from its CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import BadData, BadOption, FileRefused
from unbackdoor.files.class_folders import files_below
from unbackdoor.files.reading import path_below, read_text, reading, shown
from unbackdoor_video.data.containers import ENDINGS
from unbackdoor_video.data.decoding import Sampling
from unbackdoor_video.data.reading import Listed, label_of, splits_of

__all__ = ["hmdb51", "kinetics", "ucf101"]

_FILMS = 10**6
_TESTS = ("val", "validate", "validation", "test")


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
    named = [line.split() for line in _lines(lists / "classInd.txt")]
    if any(len(words) != 2 for words in named):
        raise BadData(f"{lists / 'classInd.txt'} must hold a number and a class name in each line.")
    classes = tuple(words[1] for words in named)
    parts = {}
    for part in ("train", "test"):
        file, videos = lists / f"{part}list{split:02d}.txt", Listed()
        for line in _lines(file):
            name = line.split()[0]
            found = re.search(r"_g(\d+)_c\d+", name)
            label = label_of(name.split("/")[0], classes, file)
            group = label * _FILMS + int(found[1]) if found else None  # films are counted anew in every class
            videos.add(path_below(root, name, file), label, group if part == "train" else None)
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
                parts[kind].add(path_below(root, f"{classes[label]}/{name.strip()}", file), label)
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
        others = [row for row in rows if row.get("split", "") in _TESTS]
        rows = [row for row in rows if row.get("split", "") not in _TESTS]
    classes = tuple(sorted({row["label"] for row in rows}))
    stems = {file.stem: file for file in files_below(root, ENDINGS)}
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
        return path_below(root, row["path"], "its list")
    name = row["youtube_id"]
    with reading(f"the row of video {shown(name)}", "give time_start and time_end in seconds"):
        times = [round(float(row[key])) for key in ("time_start", "time_end") if row.get(key)]
    cut = f"{name}_{times[0]:06d}_{times[1]:06d}" if len(times) == 2 else name
    return stems.get(cut) or stems.get(name) or path_below(root, f"{cut}.mp4", "its list")


def _rows(file: Path) -> list[Mapping[str, str]]:
    if not file.is_file():
        raise FileRefused(f"no list of videos at {shown(file)}; give its name as train_csv=....")
    with reading(shown(file), "save it as CSV with a line of column names"):
        lines = csv.reader(io.StringIO(read_text(file), newline=""))
        head = [name.strip() for name in next(lines, [])]
        rows = [dict(zip(head, (value.strip() for value in line), strict=False)) for line in lines if line]
    if "label" not in head or not {"youtube_id", "path"} & set(head):
        held = ", ".join(map(shown, head)) if head else "no row"
        raise BadData(f"{shown(file)} holds {held}; expected columns label and youtube_id (or path).")
    short = next((place for place, row in enumerate(rows) if not row.get("label")), None)
    if short is not None or not rows:
        raise BadData(f"row {(short or 0) + 1} of {shown(file)} has no label; give one for each video.")
    return [dict(row) for row in rows]


def _places(path: str | Path | None, annotations: str | None, some: str, usual: str, split: int) -> tuple[Path, Path]:
    """The folder of class folders and that of the split files."""
    if split not in (1, 2, 3):
        raise BadOption(f"split is {split}; there are 1, 2 and 3.")
    if path is None:
        raise FileRefused("no path; give the folder that holds the class folders of videos.")
    root = Path(path)
    with reading(shown(root), "check the path"):
        return _found(root, annotations, some, usual)


def _found(root: Path, annotations: str | None, some: str, usual: str) -> tuple[Path, Path]:
    tried = [Path(annotations)] if annotations else [root, root / usual, root.parent / usual]
    lists = next((folder for folder in tried if any(folder.glob(some))), None)
    if lists is None:
        raise FileRefused(f"no split files ({some}) in {', '.join(map(shown, tried))}; give annotations=FOLDER.")
    inner = root / "UCF-101"
    return (inner if inner.is_dir() else root), lists


def _lines(file: Path) -> list[str]:
    if not file.is_file():
        raise FileRefused(f"no split file at {shown(file)}; give annotations=FOLDER that holds it.")
    found = [line.strip() for line in read_text(file, what="split file").splitlines() if line.strip()]
    if not found:
        raise BadData(f"{shown(file)} is empty.")
    return found
