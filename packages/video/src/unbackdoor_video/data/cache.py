"""Decoded clips on disk, one file for each video and way of sampling, so that no video is decoded twice."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from unbackdoor.errors import FileRefused
from unbackdoor_video.data.decoding import Sampling, read_clip

__all__ = ["ClipCache"]

_Clip = np.ndarray[Any, np.dtype[np.uint8]]


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
            except OSError as error:
                raise FileRefused(
                    f"the cache {folder} cannot be made ({error}); give a folder that may be written."
                ) from error

    def clip(self, video: Path, how: Sampling) -> _Clip:
        """The clip of ``video``, decoded where it is not there yet.

        Raises:
            BadData: The video cannot be decoded.
        """
        if self.folder is None:
            return read_clip(video, how)
        place = self.folder / f"{self.key(video, how)}.npy"
        if place.is_file():
            try:
                kept: _Clip = np.load(place, allow_pickle=False)
                if kept.shape == how.shape and kept.dtype == np.uint8:
                    return kept
            except (ValueError, OSError, EOFError):  # a half-written or foreign file: decode again
                pass
        made = read_clip(video, how)
        _write(place, made)
        return made

    @staticmethod
    def key(video: Path, how: Sampling) -> str:
        """Name of the clip: path, size and time of change of the video, and the sampling."""
        status = video.stat()
        facts = [str(video.resolve()), status.st_size, status.st_mtime_ns, how.words()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _write(place: Path, clip: _Clip) -> None:
    """By way of a draft beside it, so that no half of a file is ever found under the name."""
    handle, draft = tempfile.mkstemp(dir=place.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, clip, allow_pickle=False)
        Path(draft).replace(place)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
