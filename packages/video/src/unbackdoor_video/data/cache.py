"""Decoded clips on disk, one file for each video and way of sampling, so that no video is decoded twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from unbackdoor.errors import FileRefused, UnbackdoorError
from unbackdoor.files.reading import check_file, read_npy
from unbackdoor.files.writing import write_atomically
from unbackdoor_video.data.decoding import Sampling, read_clip

__all__ = ["ClipCache"]

_Clip = np.ndarray[Any, np.dtype[np.uint8]]
_HEADER = 4096


class ClipCache:
    """Clips by video file and `Sampling`; a video that was changed on disk is decoded again."""

    def __init__(self, folder: str | Path | None) -> None:
        """Keep clips in ``folder``, made where it is missing; None keeps nothing.

        Raises:
            FileRefused: ``folder`` is a file, or cannot be made.
        """
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except (OSError, ValueError) as error:
                raise FileRefused(
                    f"the cache {folder} cannot be made ({error}); give a folder that may be written."
                ) from error

    def clip(self, video: Path, how: Sampling) -> _Clip:
        """The clip of ``video``, decoded where it is not there yet.

        Raises:
            BadData: The video cannot be decoded.
            FileRefused: There is no such video, or the cache cannot be written.
        """
        if self.folder is None:
            return read_clip(video, how)
        place = self.folder / f"{self.key(video, how)}.npy"
        kept = _kept(place, how)
        if kept is None:
            kept = made = read_clip(video, how)
            write_atomically(place, lambda draft: np.save(draft, made, allow_pickle=False), force=True)
        return kept

    @staticmethod
    def key(video: Path, how: Sampling) -> str:
        """Name of the clip: path, size and time of change of the video, and the sampling.

        Raises:
            FileRefused: There is no such video.
        """
        status = check_file(video, what="video").stat()
        facts = [str(video.resolve()), status.st_size, status.st_mtime_ns, how.words()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _kept(place: Path, how: Sampling) -> _Clip | None:
    """What the cache holds, if it is a clip of this form; anything else is decoded again and written over."""
    if not place.is_file():
        return None
    try:
        clip = read_npy(check_file(place, at_most=int(np.prod(how.shape)) + _HEADER))
    except UnbackdoorError:
        return None
    return clip if clip.shape == how.shape and clip.dtype == np.uint8 else None
