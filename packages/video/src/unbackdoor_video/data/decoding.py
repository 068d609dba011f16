"""Video files to clips of a fixed number of frames, decoded one frame at a time by PyAV."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unbackdoor.errors import BadData, BadOption

__all__ = ["ENDINGS", "FITS", "WINDOWS", "Sampling", "count_frames", "read_clip"]

ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
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
    only those.

    Args:
        path: Of the video.
        how: Which frames, and their size.

    Returns:
        ``uint8`` of shape ``(frames, channels, size, size)``.

    Raises:
        BadData: The file cannot be decoded or has no frame.
    """
    places = how.places(count_frames(path))
    out = np.empty(how.shape, dtype=np.uint8)
    wanted: dict[int, list[int]] = {}
    for slot, place in enumerate(places):
        wanted.setdefault(place, []).append(slot)
    found, last = 0, -1
    for number, frame in enumerate(_decoded(path)):
        last = number
        if number in wanted:
            pixels = _pixels(frame, how)
            for slot in wanted[number]:
                out[slot] = pixels
            found += 1
            if found == len(wanted):
                return out
    if found == 0:
        raise BadData(f"{path} has no frame that can be decoded; remove or replace it.")
    # a broken end: the file says that it holds more frames than can be decoded
    there = [slot for place, slots in wanted.items() if place <= last for slot in slots]
    for slot in set(range(how.frames)) - set(there):
        out[slot] = out[max(there)]
    return out


def count_frames(path: Path) -> int:
    """Frames of the first video stream: as the file's header says, or counted packet by packet, without decoding.

    Raises:
        BadData: The file is no video, or is not there.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        if stream.frames > 0:
            return int(stream.frames)
        return sum(1 for packet in container.demux(stream) if packet.size)


def _decoded(path: Path) -> Iterator[Any]:
    av = importlib.import_module("av")
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            yield from container.decode(stream)
        except av.error.FFmpegError:
            return  # what follows cannot be decoded; the caller knows how much there was


def _opened(path: Path) -> Any:
    av = importlib.import_module("av")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise BadData(f"{path} cannot be read as a video ({error}); remove or replace it.") from error
    if not container.streams.video:
        container.close()
        raise BadData(f"{path} holds no video stream; remove or replace it.")
    return container


def _pixels(frame: Any, how: Sampling) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One frame as ``uint8`` of shape ``(channels, size, size)``."""
    width, height, side = frame.width, frame.height, how.size
    if how.fit == "crop":
        scale = side / min(width, height)
        width, height = max(side, round(width * scale)), max(side, round(height * scale))
    else:
        width = height = side
    form = "rgb24" if how.channels == 3 else "gray"
    pixels = np.asarray(frame.reformat(width=width, height=height, format=form).to_ndarray())
    top, left = (height - side) // 2, (width - side) // 2
    cut = pixels[top : top + side, left : left + side]
    return np.ascontiguousarray(cut.transpose(2, 0, 1) if how.channels == 3 else cut[None])
