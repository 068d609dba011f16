"""Lists of labelled videos to the three parts of the threat model, decoded part by part."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbackdoor.attacker.kit import Splits
from unbackdoor.attacker.splitting import split_classes
from unbackdoor.data import GroupedBatch, groups_of
from unbackdoor.errors import BadData, FileRefused, TooLarge
from unbackdoor.files.class_names import listed
from unbackdoor.files.reading import shown
from unbackdoor.files.writing import write_atomically
from unbackdoor.task import Batch
from unbackdoor_video.data.cache import ClipCache
from unbackdoor_video.data.decoding import Sampling

__all__ = ["Listed", "decode", "label_of", "splits_of"]


@dataclass
class Listed:
    """Video files with their classes.

    Attributes:
        paths: Of the videos.
        labels: A class index for each.
        groups: A number for each; videos with one number are cut from one film. Empty where unknown.
    """

    paths: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)

    def add(self, path: Path, label: int, group: int | None = None) -> None:
        """One more video."""
        self.paths.append(path)
        self.labels.append(label)
        if group is not None:
            self.groups.append(group)

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.paths)

    def there(self, allow_missing: bool) -> Listed:
        """The videos whose file is there.

        Raises:
            FileRefused: Some are not there and ``allow_missing`` is off, or none is.
        """
        kept = [place for place, path in enumerate(self.paths) if path.is_file()]
        lacking = len(self) - len(kept)
        if not kept or (lacking and not allow_missing):
            gone = next((path for path in self.paths if not path.is_file()), "all of them")
            raise FileRefused(
                f"{lacking} of {len(self)} listed videos are not there, such as {shown(gone)}; check the path, or give "
                "allow_missing=True to go on without them."
            )
        groups = [self.groups[place] for place in kept] if self.groups else []
        return Listed([self.paths[place] for place in kept], [self.labels[place] for place in kept], groups)


def decode(paths: Sequence[Path], how: Sampling, cache: ClipCache, mapped: Path | None = None) -> Tensor:
    """The clips of all videos in one tensor, ``uint8`` of shape ``(n, frames, channels, size, size)``.

    Beside the tensor itself, memory holds a few decoded frames for each thread, however long the videos are.

    Args:
        paths: Of the videos.
        how: Which frames, and their size.
        cache: Where decoded clips are kept.
        mapped: A file that holds the tensor in place of memory; pages of it are read when they are used, and what is
            written to the tensor stays in memory.

    Raises:
        BadData: There is no video, or one cannot be decoded.
        TooLarge: There is no room for the clips.
        FileRefused: A video is not there, or ``mapped`` cannot be written.
    """
    if not paths:
        raise BadData("there are no videos; check the path.")
    shape = (len(paths), *how.shape)
    size = math.prod(shape)
    if mapped is None:
        try:
            clips = torch.empty(shape, dtype=torch.uint8)
        except RuntimeError as error:
            raise TooLarge(
                f"{len(paths):,} clips of {how.frames} frames and {how.size} pixels take {size:,} bytes, more than "
                "there is; give fewer, a smaller size=..., or mapped=true with cache=FOLDER."
            ) from error
        _fill(clips, paths, how, cache)
        return clips

    def write(draft: Path) -> None:
        with draft.open("r+b") as file:
            if sys.platform == "linux":
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is found out now, not by a page that is lost
            file.truncate(size)
        _fill(torch.from_file(str(draft), shared=True, size=size, dtype=torch.uint8).view(shape), paths, how, cache)

    write_atomically(mapped, write, force=True)
    return torch.from_file(str(mapped), shared=False, size=size, dtype=torch.uint8).view(shape)


def _fill(clips: Tensor, paths: Sequence[Path], how: Sampling, cache: ClipCache) -> None:
    def fill(place: int, context: Context) -> None:
        clips[place] = torch.from_numpy(context.run(cache.clip, paths[place], how))

    contexts = [copy_context() for _ in paths]  # threads do not inherit the limits that hold here
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        try:
            for _ in pool.map(fill, range(len(paths)), contexts):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def splits_of(
    train: Listed,
    test: Listed | None,
    classes: tuple[str, ...],
    how: Sampling,
    *,
    seed: int,
    clean_share: float | None,
    clean_count: int | None,
    test_share: float = 0.2,
    cache: str | Path | None = None,
    mapped: bool = False,
    hints: Mapping[str, Any] | None = None,
    notices: tuple[str, ...] = (),
) -> Splits:
    """The three parts; videos are drawn before any is decoded, so that each part has a tensor of its own.

    Args:
        train: Videos to train on, of which the clean part is drawn (5 % by default, as in NFT and FIP).
        test: The official test part; None takes ``test_share`` of ``train``.
        classes: Names in label order.
        how: Which frames, and their size.
        seed: Of the draw.
        clean_share: Share of the defender.
        clean_count: Their number instead.
        test_share: See ``test``.
        cache: Folder of decoded clips; None decodes anew each time.
        mapped: Keep the parts in files of the cache, not in memory.
        hints: See `Splits`.
        notices: What the user should know of how the videos were found.

    Raises:
        BadData: A video cannot be decoded, or a label has no class name.
        FileRefused: ``mapped`` without a cache.
    """
    if mapped and cache is None:
        raise FileRefused("mapped=True keeps clips in files of the cache; give cache=FOLDER too.")
    drawn = split_classes(
        GroupedBatch.of(_numbered(train, 0), torch.tensor(train.groups) if train.groups else None),
        None if test is None else _numbered(test, len(train)),
        classes,
        seed=seed,
        clean_share=clean_share,
        clean_count=clean_count,
        default_share=0.05,
        test_share=test_share,
        hints=hints,
    )
    kept = ClipCache(cache)
    paths = train.paths + ([] if test is None else test.paths)
    parts = {}
    for name in ("train", "clean", "test"):
        numbers: Tensor = getattr(drawn, name).inputs
        chosen = [paths[number] for number in numbers.tolist()]
        place = kept.folder / _part_name(name, chosen, how) if mapped and kept.folder is not None else None
        named = tuple(shown(f"{path.parent.name}/{path.name}") for path in chosen)
        clips = Batch(decode(chosen, how, kept, place), getattr(drawn, name).targets, named, classes, notices)
        parts[name] = GroupedBatch.of(clips, groups_of(getattr(drawn, name)))
    return replace(drawn, train=parts["train"], clean=parts["clean"], test=parts["test"], classes=classes)


def label_of(name: str, classes: Sequence[str], where: Path) -> int:
    """Place of ``name`` among ``classes``.

    Raises:
        BadData: It is not there.
    """
    if name not in classes:
        raise BadData(
            f"{shown(where)} names a class {name!r}, not among the {len(classes)} classes ({listed(classes)})."
        )
    return classes.index(name)


def _numbered(videos: Listed, first: int) -> Batch:
    return Batch(torch.arange(first, first + len(videos)), torch.tensor(videos.labels, dtype=torch.long))


def _part_name(name: str, paths: Sequence[Path], how: Sampling) -> str:
    import hashlib

    digest = hashlib.sha256("\n".join([repr(how), *(ClipCache.key(path, how) for path in paths)]).encode())
    return f"{name}-{digest.hexdigest()[:24]}.u8"
