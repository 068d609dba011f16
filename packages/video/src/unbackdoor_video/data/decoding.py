"""Video files to clips of a fixed number of frames, decoded one frame at a time by PyAV."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unbackdoor.errors import BadData, BadOption, TooLarge
from unbackdoor.files.reading import limits, reading, shown
from unbackdoor_video.data.containers import count_frames, decoded, upright

__all__ = ["FITS", "WINDOWS", "Sampling", "read_clip"]

FITS = ("stretch", "crop")
WINDOWS = ("centre", "start", "spread")


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video become a clip, and in which size.

    Attributes:
        frames: Number of frames of a clip. A shorter video is repeated from its beginning.
        every: One frame of every so many is kept; NFT and FIP take 5.
        window: Which of the kept frames: ``"centre"`` (neighbours in the middle), ``"start"``, or ``"spread"`` (evenly
            over the whole video).
        size: Side in pixels of the square frames; NFT and FIP take 224.
        fit: ``"stretch"`` resizes the whole frame; ``"crop"`` resizes the shorter side and cuts out the centre.
        channels: 3 for RGB, 1 for grey.
    """

    frames: int = 16
    every: int = 5
    window: str = "centre"
    size: int = 224
    fit: str = "stretch"
    channels: int = 3

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        for name in ("frames", "every", "size"):
            if getattr(self, name) < 1:
                raise BadOption(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name, known in (("window", WINDOWS), ("fit", FITS)):
            if getattr(self, name) not in known:
                raise BadOption(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}.")
        if self.channels not in (1, 3):
            raise BadOption(f"channels is {self.channels}; clips are read as RGB (3) or grey (1).")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(frames, channels, size, size)``."""
        return self.frames, self.channels, self.size, self.size

    def places(self, total: int) -> list[int]:
        """Indices of the `frames` frames to take from a video of ``total``; a short video is repeated.

        Raises:
            BadData: ``total`` is below 1.
        """
        if total < 1:
            raise BadData("the video holds no frame; remove it.")
        kept = range(0, total, self.every)
        if len(kept) <= self.frames:
            return [kept[place % len(kept)] for place in range(self.frames)]
        if self.window == "spread":
            return [kept[(2 * place + 1) * len(kept) // (2 * self.frames)] for place in range(self.frames)]
        first = (len(kept) - self.frames) // 2 if self.window == "centre" else 0
        return list(kept[first : first + self.frames])

    def words(self) -> dict[str, Any]:
        """The attributes as plain values."""
        return asdict(self)


def read_clip(path: Path, how: Sampling) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One clip of a video file; no more than a few decoded frames are in memory at any time.

    Two passes: one counts frames without decoding, the other decodes up to the last frame that is wanted and converts
    only those. Where fewer can be decoded than the file says, a third takes the frames from those.

    Args:
        path: Of the video.
        how: Which frames, and their size.

    Returns:
        ``uint8`` of shape ``(frames, channels, size, size)``.

    Raises:
        BadData: The file cannot be decoded or has no frame.
        TooLarge: It has more or larger frames than the limits allow.
        FileRefused: There is no such file.
    """
    with reading(shown(path)):
        clip, seen = _taken(path, how, count_frames(path))
        if clip is None and seen:
            clip, _ = _taken(path, how, seen)
    if clip is None:
        raise BadData(f"{shown(path)} has no frame that can be decoded; remove or replace it.")
    return clip


def _taken(path: Path, how: Sampling, total: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]] | None, int]:
    """The clip of a video of ``total`` frames, None if it ends before; and how many frames were decoded."""
    if total < 1:
        return None, 0
    slots: dict[int, list[int]] = {}
    for slot, place in enumerate(how.places(total)):
        slots.setdefault(place, []).append(slot)
    out, last, seen = np.empty(how.shape, dtype=np.uint8), max(slots), 0
    for frame in decoded(path):
        if seen in slots:
            out[slots[seen]] = _pixels(frame, how)
        seen += 1
        if seen > last:
            return out, seen
    return None, seen


def _pixels(frame: Any, how: Sampling) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One frame, upright, as ``uint8`` of shape ``(channels, size, size)``."""
    width, height, side = frame.width, frame.height, how.size
    if how.fit == "crop":
        scale = side / min(width, height)
        width, height = max(side, round(width * scale)), max(side, round(height * scale))
        if width * height > limits().pixels:
            raise TooLarge(f"a frame of {frame.width} x {frame.height} is too narrow to be cut; give fit='stretch'.")
    else:
        width = height = side
    form = "rgb24" if how.channels == 3 else "gray"
    pixels = np.asarray(frame.reformat(width=width, height=height, format=form).to_ndarray())
    top, left = (height - side) // 2, (width - side) // 2
    cut = upright(pixels[top : top + side, left : left + side], frame)
    return np.ascontiguousarray(cut.transpose(2, 0, 1) if how.channels == 3 else cut[None])
