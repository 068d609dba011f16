"""A video file, opened so that libav reads that file, in a format of a closed list, and nothing else.

By itself libav looks at what is in a file and not at its name: a playlist, a concat script or a session description
that is named ``.mp4`` makes it open other files and addresses. So it gets no path but a stream that is open already, a
list of formats that hold their own frames, no protocol at all, and a refusal where it asks for more.
"""

from __future__ import annotations

import errno
import importlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from unbackdoor.errors import BadData, TooLarge
from unbackdoor.files.reading import check_file, limits, reading, shown

__all__ = ["ENDINGS", "count_frames", "decoded", "upright"]

ENDINGS = (
    *(".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
"""Of the files that are read as videos, in lower case."""

_FORMATS = "asf,avi,flv,gif,m4v,matroska,mov,mpeg,mpegts,mpegvideo,ogg"
_REPLACE = "remove or replace it"
_PADDED = 4  # libav counts the borders that it puts around frames
_WHOLE = 1 << 16  # 1.0 in the fixed point of a display matrix


def count_frames(path: Path) -> int:
    """Frames of the first video stream: as the file's header says, or counted packet by packet, without decoding.

    Raises:
        BadData: The file is no video.
        TooLarge: It has more frames, or larger ones, than the limits allow.
        FileRefused: There is no such file.
    """
    allowed = limits().frames
    with _opened(path) as (container, stream):
        count = int(stream.frames)
        if count <= 0:
            count = 0
            for packet in container.demux(stream):
                count += packet.size > 0
                if count > allowed:
                    break
    if count > allowed:
        raise TooLarge(
            f"{shown(path)} has more than {allowed:,} frames (the limit 'frames'); cut it, or raise the limit."
        )
    return count


def decoded(path: Path) -> Iterator[Any]:
    """The frames of the first video stream, one at a time, up to where they can no longer be decoded.

    Raises:
        BadData: The file is no video.
        TooLarge: It has larger frames than the limits allow.
        FileRefused: There is no such file.
    """
    av = importlib.import_module("av")
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        try:
            for frame in container.decode(stream):
                _check_size(shown(path), frame)
                yield frame
        except av.error.FFmpegError:
            return  # what follows cannot be decoded; the caller knows how much there was


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream."""
    av = importlib.import_module("av")
    path, name = check_file(path, what="video"), shown(path)
    backstop = {"max_pixels": str(min(_PADDED * limits().pixels + 2**20, 2**62))}
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "", **backstop}
    with reading(name), path.open("rb") as file:
        try:
            container = av.open(_Stream(file, path.name), options=options, io_open=_refuse)
        except av.error.FFmpegError as error:
            raise BadData(f"{name} cannot be read as a video ({error.strerror}); remove or replace it.") from error
        with container:
            if not container.streams.video:
                raise BadData(f"{name} holds no video stream; remove or replace it.")
            stream = container.streams.video[0]
            context = stream.codec_context
            if context is None:
                raise BadData(f"{name} holds video of a kind that cannot be decoded here; convert it to H.264.")
            if not context.width * context.height:
                raise TooLarge(f"{name} does not say how large its frames are, or they are vast; {_REPLACE}.")
            _check_size(name, context)
            context.options = {**context.options, **backstop}  # of frames that grow in the middle
            yield container, stream


def _check_size(name: str, picture: Any) -> None:
    most = limits().pixels
    if picture.width * picture.height > most:
        raise TooLarge(
            f"the frames of {name} are {picture.width} x {picture.height}, more than {most:,} pixels (the limit "
            "'pixels'); give smaller ones, or raise the limit if you trust the file."
        )


class _Stream:
    """What libav reads a file through; a place that cannot be is no exception, which it would print."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.read, self.tell = file.read, file.tell
        self._seek = file.seek

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -errno.EINVAL


def _refuse(url: str, flags: int, options: dict[str, Any]) -> NoReturn:
    raise BadData(f"a video refers to another file or address ({shown(url)}), which is never opened; remove it.")


def upright(picture: np.ndarray[Any, Any], frame: Any) -> np.ndarray[Any, Any]:
    """The pixels as players show them: turned and mirrored as the display matrix says that phones write.

    Args:
        picture: Shape ``(height, width, ...)``.
        frame: The decoded frame that it is of.

    Raises:
        BadData: The video is to be shown at an angle that is no right one.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    right, down, _, across, along, *_ = struct.unpack("=9i", bytes(matrix))
    if {abs(right), abs(along)} == {_WHOLE} and down == across == 0:
        return picture[:: -1 if along < 0 else 1, :: -1 if right < 0 else 1]
    if {abs(down), abs(across)} == {_WHOLE} and right == along == 0:
        turned = picture.swapaxes(0, 1)
        return turned[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
    raise BadData(f"the video is to be shown turned by {frame.rotation} degrees, no right angle; save it upright.")
