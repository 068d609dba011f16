"""Damaged videos, tables and arrays of clips: a clip or an error of ours, and never another."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unbackdoor.testing import check_reader
from unbackdoor_video import load_clean
from unbackdoor_video.data.decoding import Sampling, read_clip

VIDEOS = [
    ("a.mp4", "mpeg4"), ("a.avi", "mpeg4"), ("a.mkv", "h264"), ("a.mov", "h264"), ("a.mpg", "mpeg1video"),
    ("a.ts", "mpeg2video"), ("a.flv", "flv"), ("a.wmv", "msmpeg4"),
]  # fmt: skip


def read_video(path: Path) -> object:
    return read_clip(path, Sampling(frames=2, every=1, size=8))


def videos(video, names) -> dict[str, bytes]:
    return {name: video(name, [9, 90, 200] * 3, (32, 32), codec).read_bytes() for name, codec in names}


def table() -> dict[str, bytes]:
    frame, file = io.BytesIO(), io.BytesIO()
    Image.new("L", (4, 4)).save(frame, "PNG")
    pq.write_table(pa.table({"frames": [[frame.getvalue()] * 2] * 2, "label": [0, 1]}), file)
    return {"a.parquet": file.getvalue()}


def arrays() -> dict[str, bytes]:
    plain, packed = io.BytesIO(), io.BytesIO()
    clips = {"clips": np.zeros((2, 2, 1, 4, 4), np.uint8), "labels": np.arange(2)}
    np.savez(plain, **clips)
    np.savez_compressed(packed, **clips)
    return {"plain.npz": plain.getvalue(), "packed.npz": packed.getvalue()}


def test_damaged_videos(video, tmp_path):
    check_reader(read_video, videos(video, VIDEOS[:3]), tmp_path)


def test_damaged_tables(tmp_path):
    check_reader(load_clean, table(), tmp_path)


def test_damaged_arrays(tmp_path):
    check_reader(load_clean, arrays(), tmp_path)


@pytest.mark.slow
def test_fifty_thousand_damaged_videos(video, tmp_path):
    check_reader(read_video, videos(video, VIDEOS), tmp_path, count=50_000, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("made", [table, arrays])
def test_fifty_thousand_damaged_files(made, tmp_path):
    check_reader(load_clean, made(), tmp_path, count=50_000, seed=1)
