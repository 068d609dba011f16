"""Folders, lists, tables, arrays and caches of clips as people have them, and what is refused of them."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from unbackdoor.errors import BadData, BadOption, FileRefused, TooLarge
from unbackdoor_video.data import LOADERS, load_clean
from unbackdoor_video.data.cache import ClipCache
from unbackdoor_video.data.decoding import Sampling, read_clip
from unbackdoor_video.data.reading import decode

SMALL = {"size": 8, "frames": 2, "every": 1}
HOW = Sampling(frames=2, every=1, size=8)


@pytest.fixture
def own(video, tmp_path) -> Path:
    """Class folders ``own/a`` and ``own/b`` of one video each."""
    for level, name in ((40, "a"), (200, "b")):
        video(f"own/{name}/1.mp4", [level] * 3)
    return tmp_path / "own"


# -------------------------------------------------------------------------------------------- class folders


def test_parts_are_no_classes(video, tmp_path):
    for part in ("train", "val"):
        for name in "ab":
            video(f"own/{part}/{name}/1.mp4", [40] * 3)
    with pytest.raises(BadData, match=r"train, val, parts of a data set where classes are expected; give .*train"):
        load_clean(tmp_path / "own", **SMALL)
    assert load_clean(tmp_path / "own" / "train", **SMALL)[1] == ("a", "b")


def test_numbers_as_names_need_an_order(video, tmp_path):
    for number in (0, 1, 2, 10):
        video(f"own/{number}/1.mp4", [40] * 3)
    for read in (
        lambda: load_clean(tmp_path / "own", **SMALL),
        lambda: LOADERS["folder"](path=tmp_path / "own", **SMALL),
    ):
        with pytest.raises(BadData, match="order='text' or order='number'"):
            read()
    assert load_clean(tmp_path / "own", order="number", **SMALL)[0].targets.tolist() == [0, 1, 10, 2]
    assert load_clean(tmp_path / "own", order="text", **SMALL)[0].targets.tolist() == [0, 1, 2, 3]


def test_a_missing_class_keeps_the_labels_of_the_others(own):
    batch, classes = load_clean(own, classes=["a", "missing", "b"], **SMALL)
    assert batch.targets.tolist() == [0, 2]
    assert batch.classes == classes == ("a", "missing", "b")
    assert batch.class_name(2) == "'b' (class 2)"
    assert batch.names == ("a/1.mp4", "b/1.mp4")


def test_folders_of_tools_are_passed_over_links_followed_and_others_told(video, own, tmp_path):
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (own / name).mkdir()
    (own / "a" / ".hidden.mp4").write_text("no video")
    (own / "a" / "notes.docx").write_text("words")
    os.mkfifo(own / "a" / "2.mp4")
    video("elsewhere/2.mp4", [120] * 3)
    (own / "b" / "more").symlink_to(tmp_path / "elsewhere")
    (own / "b" / "again").symlink_to(own)
    batch, classes = load_clean(own, **SMALL)
    assert classes == ("a", "b")
    assert batch.names == ("a/1.mp4", "b/1.mp4", "b/more/2.mp4")
    told = " ".join(batch.notices)
    assert ".docx" in told
    assert "again" in told
    assert "pipe" in told


def test_escapes_in_names_reach_no_message(own):
    (own / "a" / "1.mp4").rename(own / "a" / "\x1b[2J\x07.mp4")
    (own / "b").rename(own / "b\x1b]0;x\x07")
    batch, classes = load_clean(own, **SMALL)
    assert all(name.isprintable() for name in (*classes, *(batch.names or ()), *batch.notices))
    (own / "a" / "\x1b[2J\x07.mp4").write_text("no video")
    with pytest.raises(BadData) as error:
        load_clean(own, **SMALL)
    assert str(error.value).isprintable()


# ------------------------------------------------------------------------------------------- arrays, tables


@pytest.mark.parametrize(("clips", "error"), [
    (np.full((2, 1, 1, 2, 2), np.nan), "NaN"), (np.ones((2, 1, 1, 2, 2), complex), "complex64|complex128"),
    (np.full((2, 1, 1, 2, 2), 300), "from 300 to 300"), (np.zeros((0, 1, 1, 2, 2)), "no pixel|expected"),
])  # fmt: skip
def test_arrays_that_are_no_pixels_are_refused(tmp_path, clips, error):
    np.savez(tmp_path / "a.npz", clips=clips, labels=np.arange(len(clips)))
    with pytest.raises(BadData, match=error):
        load_clean(tmp_path / "a.npz")


@pytest.mark.parametrize(("labels", "error"), [
    ([0, -1], "go down to -1"), ([0, 2**32 - 1], "100,000 classes are allowed"), ([0, 2**62], "100,000 classes"),
])  # fmt: skip
def test_labels_that_are_no_classes_are_refused_before_memory_is_taken(tmp_path, labels, error):
    np.savez(tmp_path / "a.npz", clips=np.zeros((2, 1, 1, 2, 2), np.uint8), labels=np.array(labels))
    with pytest.raises(BadData, match=error):
        load_clean(tmp_path / "a.npz")


def test_clips_of_sixteen_bits_are_scaled_and_told(tmp_path):
    clips = np.array([0, 257, 65535], np.uint16)[:, None, None, None, None]
    np.savez(tmp_path / "a.npz", clips=clips, labels=np.arange(3, dtype=np.uint16))
    batch, _ = load_clean(tmp_path / "a.npz")
    assert batch.inputs.flatten().tolist() == [0, 1, 255]
    assert "divided by 257" in batch.notices[0]


def test_tables_name_their_columns_and_rows(tmp_path):
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    rows = {"shots": [[file.getvalue()], [b"%!PS-Adobe-3.0 EPSF-3.0"]], "kind": ["b", "a"]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    with pytest.raises(BadData, match="name it with frames_column"):
        load_clean(tmp_path / "a.parquet")
    words = {"frames_column": "shots", "label_column": "kind"}
    with pytest.raises(BadData, match=r"a\.parquet row 1 frame 0 is no image of a kind that is read"):
        load_clean(tmp_path / "a.parquet", **words)
    pq.write_table(pa.table({**rows, "shots": rows["shots"][:1] * 2}), tmp_path / "a.parquet")
    batch, classes = load_clean(tmp_path / "a.parquet", **words)
    assert (classes, batch.targets.tolist()) == (("a", "b"), [1, 0])
    assert batch.names == ("a.parquet row 0", "a.parquet row 1")


# ---------------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize("name", ["../secret.mp4", "/etc/passwd", "a/../../secret.mp4"])
def test_lists_name_nothing_outside_their_folder(video, own, name):
    video("secret.mp4", [9] * 3)
    (own / "train.csv").write_text(f"path,label\n{name},a\n")
    with pytest.raises(FileRefused, match=r"outside .*own"):
        LOADERS["kinetics"](path=own, **SMALL)


@pytest.mark.parametrize(("text", "error"), [
    ("path,label\na/1.mp4,a\na/1.mp4\n", "row 2 of .* has no label"), ("path,label\n", "has no label"),
    ("youtube_id,label,time_start,time_end\nx,a,soon,late\n", "row of video x"), ("path,label\n\0\n", "train.csv"),
    ('path,label\n"a,b\n', "train.csv"), ("\ud800", "train.csv"),
])  # fmt: skip
def test_lists_that_are_no_lists_are_refused(own, text, error):
    (own / "train.csv").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(BadData, match=error):
        LOADERS["kinetics"](path=own, **SMALL)


def test_split_files_that_are_none_are_refused(own):
    (own / "classInd.txt").write_text("Archery\n")
    (own / "trainlist01.txt").write_text("a/1.mp4 1\n")
    with pytest.raises(BadData, match=r"classInd\.txt must hold a number and a class name"):
        LOADERS["ucf101"](path=own, **SMALL)
    (own / "classInd.txt").write_text("1 ..\n")
    (own / "trainlist01.txt").write_text("../1.mp4 1\n")
    with pytest.raises(FileRefused, match="outside"):
        LOADERS["ucf101"](path=own, **SMALL)


# --------------------------------------------------------------------------------------------------- caches


@pytest.mark.parametrize("planted", ["pickle", "array of another form", "vast array", "pipe"])
def test_what_others_put_into_a_cache_is_not_taken(own, tmp_path, planted):
    cache, path = ClipCache(tmp_path / "cache"), own / "a" / "1.mp4"
    place = tmp_path / "cache" / f"{cache.key(path, HOW)}.npy"
    match planted:
        case "pickle":
            place.write_bytes(pickle.dumps(torch.zeros(2)))
        case "array of another form":
            np.save(place, np.zeros((2, 3, 8, 8), np.float32))
        case "vast array":
            header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }\n"
            place.write_bytes(b"\x93NUMPY\x01\x00" + bytes([len(header), 0]) + header)
        case "pipe":
            os.mkfifo(place)
    if planted == "pipe":
        with pytest.raises(FileRefused, match="pipe"):
            cache.clip(path, HOW)
        return
    assert np.array_equal(cache.clip(path, HOW), read_clip(path, HOW))
    assert np.array_equal(np.load(place), read_clip(path, HOW))


def test_cache_writes_through_no_link(own, tmp_path):
    cache, path = ClipCache(tmp_path / "cache"), own / "a" / "1.mp4"
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "cache" / f"{cache.key(path, HOW)}.npy").symlink_to(tmp_path / "mine.txt")
    (tmp_path / "cache" / "all.u8").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(FileRefused, match="link"):
        cache.clip(path, HOW)
    with pytest.raises(FileRefused, match="link"):
        decode([path], HOW, ClipCache(None), tmp_path / "cache" / "all.u8")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_clips_in_files_of_the_cache_are_not_written_by_who_uses_them(own, tmp_path):
    place = tmp_path / "all.u8"
    clips = decode([own / "a" / "1.mp4"], HOW, ClipCache(None), place)
    before = place.read_bytes()
    clips.zero_()
    assert place.read_bytes() == before


def test_clips_that_no_memory_holds_are_refused(own):
    with pytest.raises(TooLarge, match=r"give fewer, a smaller size=\.\.\., or mapped=true"):
        load_clean(own, size=10**7, frames=1000)
    with pytest.raises(FileRefused, match="cannot be made"):
        ClipCache(own / "a" / "1.mp4")
    with pytest.raises(BadOption, match="classes names a twice"):
        load_clean(own, classes=["a", "a", "b"], **SMALL)
