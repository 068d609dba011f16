"""What libav is let near, which way is up, and how much of a video is read."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from unbackdoor.errors import BadData, FileRefused, TooLarge
from unbackdoor.files.reading import limited
from unbackdoor_video import load_clean
from unbackdoor_video.data.containers import ENDINGS, count_frames
from unbackdoor_video.data.decoding import Sampling, read_clip

WHOLE = 1 << 16
SMALL = Sampling(frames=2, every=1, size=8)


def turned(path: Path, matrix: tuple[int, int, int, int], *, whole: int = WHOLE) -> Path:
    """A 64 x 32 video, white in its first quarter and grey in its last one, that is to be shown by ``matrix``."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        pixels = np.zeros((32, 64, 3), dtype=np.uint8)
        pixels[:16, :32], pixels[16:, 32:] = 250, 120
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    content = path.read_bytes()
    place = content.index(struct.pack(">9i", WHOLE, 0, 0, 0, WHOLE, 0, 0, 0, 1 << 30), content.index(b"tkhd"))
    right, down, across, along = (value * whole for value in matrix)
    changed = struct.pack(">9i", right, down, 0, across, along, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:place] + changed + content[place + 36 :])
    return path


# corners in reading order: white, black, black, grey, as they are stored
@pytest.mark.parametrize(("matrix", "corners"), [
    ((1, 0, 0, 1), "wbbg"),
    ((0, 1, -1, 0), "bwgb"),  # a quarter to the right, as a phone that is held upright writes it
    ((-1, 0, 0, -1), "gbbw"),
    ((0, -1, 1, 0), "bgwb"),
    ((-1, 0, 0, 1), "bwgb"),
    ((1, 0, 0, -1), "bgwb"),
    ((0, 1, 1, 0), "wbbg"),
    ((0, -1, -1, 0), "gbbw"),
])  # fmt: skip
@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_clip_is_upright(tmp_path, matrix, corners, fit):
    clip = read_clip(turned(tmp_path / "a.mp4", matrix), Sampling(frames=1, every=1, size=16, fit=fit))
    levels = clip[0, 0][np.ix_([2, 13], [2, 13])].flatten().astype(int)
    assert levels.tolist() == pytest.approx([{"w": 250, "b": 0, "g": 120}[corner] for corner in corners], abs=8)


def test_clip_that_is_askew_is_refused(tmp_path):
    path = turned(tmp_path / "a.mp4", (1, 1, -1, 1), whole=46341)
    with pytest.raises(BadData, match=r"turned by -4[45] degrees, no right angle; save it upright"):
        read_clip(path, SMALL)


@pytest.mark.parametrize(("name", "codec"), [
    ("a.avi", "mpeg4"), ("a.flv", "flv"), ("a.m4v", "mpeg4"), ("a.mkv", "h264"), ("a.mov", "h264"),
    ("a.mpg", "mpeg1video"), ("a.ts", "mpeg2video"), ("a.wmv", "msmpeg4"),
])  # fmt: skip
def test_usual_containers_are_read(video, name, codec):
    path = video(name, [60] * 9, (32, 32), codec)
    assert path.suffix in ENDINGS
    assert abs(int(read_clip(path, SMALL).mean()) - 60) <= 4


def test_animation_is_read_as_a_clip(tmp_path):
    from PIL import Image

    frames = [Image.fromarray(np.full((16, 16), level, np.uint8)) for level in (40, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], loop=0)
    levels = read_clip(tmp_path / "a.gif", SMALL).reshape(2, -1).mean(1)
    assert levels.tolist() == pytest.approx([40, 200], abs=4)


def test_script_that_names_another_video_reads_nothing_of_it(video, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where libav would look
    video("secret.mp4", [250] * 9)
    (tmp_path / "a.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    assert len(list(av.open(str(tmp_path / "a.mp4")).decode(video=0))) == 9  # what libav does by itself
    with pytest.raises(BadData, match=r"a\.mp4 cannot be read as a video"):
        read_clip(tmp_path / "a.mp4", SMALL)


def test_header_that_says_too_much_gives_the_frames_that_are_there(video):
    path = video("a.avi", [20, 60, 100, 140])
    content = path.read_bytes()
    place = content.index(b"strh") + 8 + 32  # the length of the stream
    path.write_bytes(content[:place] + struct.pack("<I", 900_000) + content[place + 4 :])
    assert count_frames(path) == 900_000
    levels = read_clip(path, SMALL).reshape(2, -1).mean(1)
    assert levels.tolist() == pytest.approx([60, 100], abs=4)


def test_limits_on_frames_and_pixels(video, tmp_path):
    path, endless = video("a.mp4", [20] * 9, (64, 48)), video("a.mkv", [20] * 30, (32, 32), "h264")
    with (
        limited(pixels=64 * 48 - 1),
        pytest.raises(TooLarge, match=r"64 x 48, more than 3,071 pixels \(the limit 'pix"),
    ):
        read_clip(path, SMALL)
    for file in (path, endless):
        with limited(frames=8), pytest.raises(TooLarge, match="more than 8 frames"):
            read_clip(file, SMALL)
    (tmp_path / "own" / "a").mkdir(parents=True)
    path.rename(tmp_path / "own" / "a" / "1.mp4")
    with limited(pixels=99), pytest.raises(TooLarge, match="99 pixels"):  # threads look at the same limits
        load_clean(tmp_path / "own", 8, frames=2)


def test_frames_too_narrow_to_be_cut_are_refused(video):
    path = video("a.mp4", [20] * 2, (640, 16))
    with limited(pixels=40_000), pytest.raises(TooLarge, match="give fit='stretch'"):
        read_clip(path, Sampling(frames=1, size=64, fit="crop"))
    assert read_clip(path, Sampling(frames=1, size=64)).shape == (1, 3, 64, 64)


def test_video_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileRefused, match=r"no video at .*gone\.mp4"):
        read_clip(tmp_path / "gone.mp4", SMALL)
