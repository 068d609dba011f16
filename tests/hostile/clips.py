"""Hostile clips: playlists and scripts named as videos, frames beyond all size, tables that unpack without end."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from hostile.samples import ESCAPES, HostileData, odd_files

__all__ = ["honest_video", "hostile_clips", "lay_clips"]

_HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n"
_DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT10S" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4">'
    '<Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>'
)
_SDP = "v=0\no=- 0 0 IN IP4 {host}\ns=x\nc=IN IP4 {host}\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
_SMOOTH = '<SmoothStreamingMedia MajorVersion="2"><StreamIndex Type="video" Url="{}"/></SmoothStreamingMedia>'
_VIDEO = {"size": 8, "frames": 2, "every": 1}


@cache
def honest_video(size: tuple[int, int] = (16, 16), levels: tuple[int, ...] = (9, 90, 200)) -> bytes:
    """An mp4 file with grey frames."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for level in levels:
            pixels = np.full((size[1], size[0], 3), level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def lay_clips(place: Path) -> Path:
    """Class folders ``a`` and ``b`` in ``data`` with an honest video each, and a secret one outside."""
    for name in "ab":
        (place / "data" / name).mkdir(parents=True)
        (place / "data" / name / "1.mp4").write_bytes(honest_video())
    (place / "outside" / "secret.mp4").write_bytes(honest_video())
    return place / "data"


def hostile_clips(address: str) -> Iterator[HostileData]:
    """All cases; ``address`` is the host and port that some of them would connect to."""
    for name, text in _references(address):
        yield HostileData(f"a video is {name}", "video", partial(_video, text), _VIDEO)
    for name, change in odd_files(lambda place: place / "data" / "a" / "1.mp4"):
        # links are followed as a user's own, and what is no regular file is left out with a notice
        left = name in ("a pipe", "a folder", "a link to a device", "a link to itself", "a link to nothing")
        yield HostileData(f"a video is {name}", "video", partial(_changed, change), _VIDEO, harmless=left)
    for name, content in _damaged():
        yield HostileData(f"a video {name}", "video", partial(_bytes, content), _VIDEO, harmless="header" in name)
    for name, change in _FOLDERS.items():
        yield HostileData(f"class folders with {name}", "video", partial(_changed, change), _VIDEO, harmless=True)
    yield HostileData("frames of a size that no memory holds", "video", lay_clips, {**_VIDEO, "size": 10**6})
    for name, arrays in _arrays():
        yield HostileData(f"arrays of clips {name}", "video", partial(_file, "clips.npz", arrays))
    for name, table in _tables():
        yield HostileData(f"a table of clips {name}", "video", partial(_file, "clips.parquet", table))
    yield HostileData("a cache that others wrote into", "video", _cached, {**_VIDEO, "cache": "cache"}, harmless=True)


def _references(address: str) -> Iterator[tuple[str, Callable[[Path], str]]]:
    """Texts that make libav open something else, by what they are."""
    host, port = address.split(":")
    for what, find in {
        "a file": lambda place: str(place / "outside" / "secret.mp4"),
        "a file by its address": lambda place: f"file:{place / 'outside' / 'secret.mp4'}",
        "an address": lambda place: f"http://{address}/x.mp4",
        "an address within another protocol": lambda place: f"crypto+http://{address}/x.mp4",
    }.items():
        yield f"a playlist of {what}", lambda place, find=find: _HLS.format(find(place))
        yield f"a concat script of {what}", lambda place, find=find: f"ffconcat version 1.0\nfile '{find(place)}'\n"
        yield f"a DASH manifest of {what}", lambda place, find=find: _DASH.format(find(place))
    yield "a concat script of its neighbour", lambda place: "ffconcat version 1.0\nfile ../b/1.mp4\n"
    yield "a smooth-streaming manifest", lambda place: _SMOOTH.format(f"http://{address}/x")
    yield "a session description", lambda place: _SDP.format(host=host, port=port)
    yield "a file of metadata", lambda place: ";FFMETADATA1\ntitle=x\n"
    yield "a subtitle", lambda place: "1\n00:00:00,000 --> 00:00:10,000\n<img src='file:///etc/passwd'>\n"


def _damaged() -> Iterator[tuple[str, bytes]]:
    whole = honest_video()
    yield "ends in its middle", whole[: len(whole) // 2]
    yield "is a picture", _png(8, 8)
    yield "is a table of an archive", b"PK\x05\x06" + b"\0" * 18
    for name, box, offset in (("frames in its header", b"stsz", 12), ("entries in its header", b"stts", 8)):
        place = whole.index(box) + offset
        yield f"declares too many {name}", whole[:place] + struct.pack(">I", 2**31 - 1) + whole[place + 4 :]
    place = whole.index(b"mp4v") + 28
    yield "declares a vast picture in its header", whole[:place] + struct.pack(">HH", 65535, 65535) + whole[place + 4 :]
    yield "holds sound alone", _sound()


def _sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def _png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


def _vast_png() -> bytes:
    """A picture whose header says 60,000 x 60,000."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _arrays() -> Iterator[tuple[str, dict[str, Any]]]:
    clips = np.zeros((2, 2, 1, 4, 4), np.uint8)
    for label in (-1, 2**32 - 1, 2**63 - 1, -(2**63)):
        yield f"with the label {label}", {"clips": clips, "labels": np.array([0, label])}
    yield "with the label 2**64 - 1", {"clips": clips, "labels": np.array([0, 2**64 - 1], np.uint64)}
    yield "with labels that are floats", {"clips": clips, "labels": np.array([0.0, 1.0])}
    yield "that are complex", {"clips": clips.astype(np.complex64), "labels": np.array([0, 1])}
    yield "that are NaN", {"clips": clips.astype(np.float32) * np.nan, "labels": np.array([0, 1])}
    yield "that are objects", {"clips": np.array([{}, {}], dtype=object), "labels": np.array([0, 1])}
    yield "of no clip", {"clips": clips[:0], "labels": np.array([], np.int64)}


def _tables() -> Iterator[tuple[str, pa.Table]]:
    frame = _png(4, 4)
    rows = {"frames": [[frame, frame]] * 2, "label": [0, 1]}
    yield "with frames of PostScript", pa.table({**rows, "frames": [[b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n"]] * 2})
    yield "with a vast frame", pa.table({**rows, "frames": [[_vast_png()]] * 2})
    yield "with rows without frames", pa.table({**rows, "frames": pa.array([None, []], pa.list_(pa.binary()))})
    yield "with the label 2**40", pa.table({**rows, "label": [0, 2**40]})
    yield "with the label -1", pa.table({**rows, "label": [0, -1]})
    yield "without labels", pa.table({**rows, "label": pa.array([None, None], pa.int64())})
    names = pa.table(rows).replace_schema_metadata({"label_names": "[" * 100_000})
    yield "with class names too deep", names
    yield "with class names that are numbers", pa.table(rows).replace_schema_metadata({"label_names": json.dumps(3)})
    big = pa.array([b"\0" * 10**6]).dictionary_encode()
    wide = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), big.dictionary)
    lists = pa.ListArray.from_arrays(pa.array(range(0, 20_001, 10_000), pa.int32()), wide)
    yield "whose frames are one, repeated without end", pa.table({"frames": lists, "label": [0, 1]})


def _video(text: Callable[[Path], str], place: Path) -> Path:
    lay_clips(place)
    (place / "data" / "a" / "1.mp4").write_text(text(place))
    return place / "data"


def _bytes(content: bytes, place: Path) -> Path:
    lay_clips(place)
    (place / "data" / "a" / "1.mp4").write_bytes(content)
    return place / "data"


def _changed(change: Callable[[Path], Any], place: Path) -> Path:
    lay_clips(place)
    change(place)
    return place / "data"


def _file(name: str, content: Any, place: Path) -> Path:
    path = place / "data" / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        np.savez_compressed(path, **content)
    return path


def _cached(place: Path) -> Path:
    """Every file that the cache could look for is a pickle of tensors."""
    from unbackdoor_video.data.cache import ClipCache
    from unbackdoor_video.data.decoding import Sampling

    lay_clips(place)
    here = place / "here" / "cache"
    here.mkdir(parents=True, exist_ok=True)
    for video in (place / "data").rglob("*.mp4"):
        key = ClipCache.key(video, Sampling(frames=2, every=1, size=8))
        (here / f"{key}.npy").write_bytes(pickle.dumps(torch.zeros(2)))
    return place / "data"


_FOLDERS: dict[str, Callable[[Path], Any]] = {
    "escapes in a name": lambda place: (place / "data" / "b").rename(place / "data" / ESCAPES),
    "escapes in a file's name": lambda place: (place / "data" / "b" / "1.mp4").rename(
        place / "data" / "b" / f"{ESCAPES}.mp4"
    ),
    "a link to itself": lambda place: (place / "data" / "a" / "again").symlink_to(place / "data"),
    "a link to all files": lambda place: (place / "data" / "a" / "all").symlink_to("/"),
    "a pipe beside them": lambda place: os.mkfifo(place / "data" / "a" / "2.mp4"),
    "a device beside them": lambda place: (place / "data" / "a" / "2.mp4").symlink_to("/dev/zero"),
}
