"""Videos that the tests write, decoded frame by frame, and the cache of what was decoded."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from unbackdoor.errors import BadData, BadOption
from unbackdoor_video.data.cache import ClipCache
from unbackdoor_video.data.containers import count_frames
from unbackdoor_video.data.decoding import Sampling, read_clip

LOSS = 4  # grey levels that a codec may be off


def levels_of(clip) -> list[int]:
    return np.asarray(clip).reshape(len(clip), -1).mean(1).round().astype(int).tolist()


# ------------------------------------------------------------------------------------------- which frames


@pytest.mark.parametrize(("total", "words", "expected"), [
    (40, {"frames": 4, "every": 5}, [10, 15, 20, 25]),
    (40, {"frames": 4, "every": 5, "window": "start"}, [0, 5, 10, 15]),
    (40, {"frames": 4, "every": 5, "window": "spread"}, [5, 15, 25, 35]),
    (8, {"frames": 4, "every": 5}, [0, 5, 0, 5]),
    (4, {"frames": 4, "every": 1, "window": "spread"}, [0, 1, 2, 3]),
    (1, {"frames": 2, "every": 3}, [0, 0]),
])  # fmt: skip
def test_sampling_takes_these_frames(total, words, expected):
    assert Sampling(**words).places(total) == expected


@pytest.mark.parametrize("window", ["centre", "start", "spread"])
def test_sampling_stays_within_the_video_and_on_its_grid(window):
    for total in range(1, 60):
        for frames in (1, 3, 7):
            for every in (1, 2, 5):
                places = Sampling(frames=frames, every=every, window=window).places(total)
                assert len(places) == frames
                assert all(0 <= place < total and place % every == 0 for place in places)


@pytest.mark.parametrize("words", [{"frames": 0}, {"every": 0}, {"size": 0}, {"window": "end"}, {"fit": "pad"},
                                   {"channels": 2}])  # fmt: skip
def test_sampling_refuses_what_cannot_be(words):
    with pytest.raises(BadOption):
        Sampling(**words)


# ----------------------------------------------------------------------------------------------- decoding


def test_clip_holds_the_frames_that_were_asked_for(video):
    path = video("ramp.mp4", [6 * n for n in range(40)])
    assert count_frames(path) == 40
    clip = read_clip(path, Sampling(frames=4, every=5, size=8))
    assert clip.shape == (4, 3, 8, 8)
    assert clip.dtype == np.uint8
    assert levels_of(clip) == pytest.approx([60, 90, 120, 150], abs=LOSS)


def test_clip_of_h264_and_of_a_container_without_a_count(video):
    path = video("ramp.mkv", [10 * n for n in range(20)], (32, 32), "h264")
    clip = read_clip(path, Sampling(frames=3, every=5, window="start", size=8, channels=1))
    assert clip.shape == (3, 1, 8, 8)
    assert levels_of(clip) == pytest.approx([0, 50, 100], abs=LOSS)


def test_clip_of_a_short_video_begins_again(video):
    clip = read_clip(video("short.mp4", [20, 200]), Sampling(frames=5, every=1, size=8))
    assert levels_of(clip) == pytest.approx([20, 200, 20, 200, 20], abs=LOSS)


def test_clip_is_cut_or_stretched(tmp_path):
    import av

    path = tmp_path / "sides.mp4"
    with av.open(str(path), "w") as container:  # left half black, right half white, 64 x 32
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        pixels = np.zeros((32, 64, 3), dtype=np.uint8)
        pixels[:, 48:] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    stretched = read_clip(path, Sampling(frames=1, size=16))[0, 0]
    cut = read_clip(path, Sampling(frames=1, size=16, fit="crop"))[0, 0]
    assert (stretched.mean(0) > 128).sum() == 4
    assert (cut.mean(0) > 128).sum() == 0  # the centre ends where white begins


def test_clip_of_a_broken_end_holds_its_last_frame(video):
    path = video("cut.avi", [30 + 5 * n for n in range(40)], (64, 64))
    whole = read_clip(path, Sampling(frames=4, every=9, window="start", size=8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    clip = read_clip(path, Sampling(frames=4, every=9, window="start", size=8))
    assert levels_of(clip)[0] == pytest.approx(levels_of(whole)[0], abs=LOSS)
    assert clip.shape == whole.shape


def test_files_that_are_no_videos_are_refused(tmp_path):
    path = tmp_path / "words.mp4"
    path.write_text("no video")
    with pytest.raises(BadData, match=r"words\.mp4"):
        read_clip(path, Sampling())


LONG = """
import resource, sys
from pathlib import Path
import torch
from unbackdoor_video.data.cache import ClipCache
from unbackdoor_video.data.decoding import Sampling
from unbackdoor_video.data.reading import decode
torch.set_num_threads(1)
short, *long = map(Path, sys.argv[1:])
how = Sampling(frames=8, every=5, window="spread", size=16)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode([short] * 8, how, ClipCache(None))
before = peak()
clips = decode(long, how, ClipCache(None))
print(peak() - before, tuple(clips.shape))
"""


@pytest.mark.slow
def test_memory_stays_bounded_on_a_folder_of_long_videos(video):
    """Decoded whole, the long videos are 8 times 105 MB; a process that reads them grows by a small part of one."""
    size = (320, 240)
    short = video("short.mp4", [9] * 10, size)
    long = video("long.mp4", [n % 250 for n in range(480)], size)
    words = [sys.executable, "-c", LONG, str(short), *[str(long)] * 8]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown, _, shape = done.stdout.partition(" ")
    assert shape.strip() == "(8, 8, 3, 16, 16)"
    assert int(grown) < 40_000, f"the process grew by {int(grown) // 1000} MB"


# -------------------------------------------------------------------------------------------------- cache


def test_cache_decodes_a_video_once_for_each_sampling(video, tmp_path, monkeypatch):
    from unbackdoor_video.data import cache as room

    path, read = video("a.mp4", [50] * 6), []
    monkeypatch.setattr(room, "read_clip", lambda *a: read.append(a) or read_clip(*a))
    cache = ClipCache(tmp_path / "cache")
    how = Sampling(frames=2, every=1, size=8)
    first, again = cache.clip(path, how), cache.clip(path, how)
    assert np.array_equal(first, again)
    assert len(read) == 1
    cache.clip(path, Sampling(frames=3, every=1, size=8))
    assert len(read) == 2
    video("a.mp4", [220] * 7)
    assert levels_of(cache.clip(path, how)) == pytest.approx([220, 220], abs=LOSS)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_cache_with_a_broken_file_decodes_again(video, tmp_path):
    path, how = video("a.mp4", [50] * 6), Sampling(frames=2, every=1, size=8)
    cache = ClipCache(tmp_path / "cache")
    first = cache.clip(path, how)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(cache.clip(path, how), first)
