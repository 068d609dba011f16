"""Loaders on video files, split files and Parquet that the tests write."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from unbackdoor.data import groups_of
from unbackdoor.errors import BadData, BadOption, FileRefused
from unbackdoor_video.data import LOADERS, load_clean
from unbackdoor_video.data.moving_digits import moving_digits

SMALL = {"size": 8, "frames": 3}


def test_clips_in_files_of_the_cache_are_those_in_memory(video, tmp_path):
    for name in "ab":
        for number in range(8):
            video(f"videos/{name}/{number}.mp4", [20 * number + (100 if name == "b" else 0)] * 4)
    words = {"path": tmp_path / "videos", "every": 1, "clean_share": 0.2, **SMALL}
    plain = LOADERS["folder"](**words)
    mapped = LOADERS["folder"](**words, cache=str(tmp_path / "cache"), mapped=True)
    for part in ("train", "clean", "test"):
        assert torch.equal(getattr(plain, part).inputs, getattr(mapped, part).inputs)
        assert torch.equal(getattr(plain, part).targets, getattr(mapped, part).targets)
    assert len(list((tmp_path / "cache").glob("*.u8"))) == 3
    with pytest.raises(FileRefused, match="cache"):
        LOADERS["folder"](**words, mapped=True)


def test_folder_gives_labels_by_name_and_disjoint_parts(video, tmp_path):
    for label, name in enumerate(("clap", "wave")):
        for number in range(10):
            video(f"videos/{name}/{number}.mp4", [100 * label + 8 * number] * 3)
    data = LOADERS["folder"](path=tmp_path / "videos", clean_share=0.25, every=1, **SMALL)
    assert data.classes == ("clap", "wave")
    assert [len(part) for part in (data.train, data.clean, data.test)] == [12, 4, 4]
    seen = []
    for part in (data.train, data.clean, data.test):
        found = part.inputs.float().mean((1, 2, 3, 4))
        assert torch.equal((found > 90).long(), part.targets)
        seen += found.round().tolist()
    assert len(set(seen)) == 20


def test_folder_with_train_and_test(video, tmp_path):
    for part, count in (("train", 4), ("val", 2)):
        for name in "ab":
            for number in range(count):
                video(f"videos/{part}/{name}/{number}.mp4", [40] * 3)
    data = LOADERS["folder"](path=tmp_path / "videos", clean_count=2, every=1, **SMALL)
    assert [len(part) for part in (data.train, data.clean, data.test)] == [6, 2, 4]


def test_ucf101_follows_its_split_files_and_keeps_films_together(video, tmp_path):
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 Bowling\n")
    train, test = [], []
    for label, name in enumerate(("Archery", "Bowling"), start=1):
        for group in range(1, 6):
            for take in (1, 2):
                file = f"{name}/v_{name}_g{group:02d}_c{take:02d}.avi"
                video(f"UCF-101/{file}", [40 * group + 10 + take] * 3)
                (train if group > 1 else test).append(f"{file} {label}" if group > 1 else file)
    (lists / "trainlist01.txt").write_text("\n".join(train) + "\n")
    (lists / "testlist01.txt").write_text("\n".join(test) + "\n")
    data = LOADERS["ucf101"](path=tmp_path, clean_count=4, every=1, **SMALL)
    assert data.classes == ("Archery", "Bowling")
    assert len(data.test) == 4
    assert data.test.targets.bincount().tolist() == [2, 2]
    films = [
        {
            (int(t), round(float(x)) // 40)
            for x, t in zip(part.inputs.float().mean((1, 2, 3, 4)), part.targets, strict=True)
        }
        for part in (data.train, data.clean)
    ]
    assert not films[0] & films[1]
    groups = [groups_of(part) for part in (data.train, data.clean)]
    assert [len(group.unique()) for group in groups] == list(map(len, films)), "films are counted anew in each class"
    assert not set(groups[0].tolist()) & set(groups[1].tolist())
    with pytest.raises(BadOption, match="split is 4"):
        LOADERS["ucf101"](path=tmp_path, split=4)
    (tmp_path / "UCF-101" / "Archery" / "v_Archery_g02_c01.avi").unlink()
    with pytest.raises(FileRefused, match="1 of 16"):
        LOADERS["ucf101"](path=tmp_path, every=1, **SMALL)
    assert len(LOADERS["ucf101"](path=tmp_path, every=1, clean_count=2, allow_missing=True, **SMALL).clean) == 2


def test_hmdb51_follows_its_split_files(video, tmp_path):
    lists = tmp_path / "splits"
    lists.mkdir()
    for name in ("cartwheel", "wave"):
        lines = []
        for number, kind in enumerate((1, 1, 1, 1, 2, 2, 0)):
            video(f"hmdb/{name}/{number}.avi", [30 * number] * 3)
            lines.append(f"{number}.avi {kind} ")
        (lists / f"{name}_test_split2.txt").write_text("\n".join(lines))
    words = {"path": tmp_path / "hmdb", "annotations": str(lists), "split": 2, "every": 1, "clean_count": 2, **SMALL}
    data = LOADERS["hmdb51"](**words)
    assert data.classes == ("cartwheel", "wave")
    assert [len(part) for part in (data.train, data.clean, data.test)] == [6, 2, 4]
    assert sorted(set(data.test.inputs.float().mean((1, 2, 3, 4)).div(30).round().tolist())) == [4, 5]
    (lists / "wave_test_split2.txt").write_text("0.avi yes\n")
    with pytest.raises(BadData, match="0 \\(unused\\)"):
        LOADERS["hmdb51"](**words)
    with pytest.raises(FileRefused, match="split files"):
        LOADERS["hmdb51"](path=tmp_path / "hmdb")


def test_kinetics_finds_cut_videos_and_needs_to_be_told_of_missing_ones(video, tmp_path):
    head = "label,youtube_id,time_start,time_end,split\n"
    rows = [f"{name},{name}{n},{n},{n + 10},train" for name in ("jump", "run") for n in range(6)]
    (tmp_path / "train.csv").write_text(head + "\n".join(rows) + "\n")
    (tmp_path / "val.csv").write_text(head + "run,runv,5,15,val\njump,gone,5,15,val\n")
    for row in rows:
        label, name, start, end, _ = row.split(",")
        video(f"train/{label}/{name}_{int(start):06d}_{int(end):06d}.mp4", [90] * 3)
    video("val/runv.mp4", [200] * 3)
    with pytest.raises(FileRefused, match="1 of 2"):
        LOADERS["kinetics"](path=tmp_path, every=1, **SMALL)
    data = LOADERS["kinetics"](path=tmp_path, every=1, allow_missing=True, clean_count=2, **SMALL)
    assert data.classes == ("jump", "run")
    assert [len(part) for part in (data.train, data.clean, data.test)] == [10, 2, 1]
    assert data.test.targets.tolist() == [1]
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BadData, match="youtube_id"):
        LOADERS["kinetics"](path=tmp_path)


def test_kinetics_reads_a_list_of_paths(video, tmp_path):
    lines = ["path,label,split"]
    for name in "ab":
        for number in range(5):
            video(f"{name}{number}.mp4", [60] * 3)
            lines.append(f"{name}{number}.mp4,{name},{'test' if number == 4 else 'train'}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    data = LOADERS["kinetics"](path=tmp_path, train_csv="list.csv", every=1, clean_count=2, **SMALL)
    assert [len(part) for part in (data.train, data.clean, data.test)] == [6, 2, 2]


def frame_file(level: int, side: int = 6) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((side, side), level, dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def write_parquet(path: Path, rows: int = 40, names: str = '["a", "b"]') -> Path:
    table = pa.table({
        "frames": [[frame_file(20 * frame + place) for frame in range(6)] for place in range(rows)],
        "label": [place % 2 for place in range(rows)],
        "split": ["test" if place < 10 else "train" for place in range(rows)],
    })  # fmt: skip
    pq.write_table(table.replace_schema_metadata({"label_names": names}), path)
    return path


def test_parquet_of_frames_follows_its_split_and_keeps_a_clean_clip_of_each_class(tmp_path):
    data = LOADERS["parquet"](path=write_parquet(tmp_path / "x.parquet"), frames=3, crop=2)
    assert data.classes == ("a", "b")
    assert [len(part) for part in (data.train, data.clean, data.test)] == [28, 2, 10]
    assert sorted(data.clean.targets.tolist()) == [0, 1]
    assert data.hints == {"flip": False, "crop": 2, "shift": 0}
    first = data.test.inputs[0]
    assert first.shape == (3, 1, 6, 6)
    assert first.flatten(1).unique(dim=1).flatten().tolist() == [20, 60, 100]


def test_parquet_of_frames_in_colour_and_another_size(tmp_path):
    data = LOADERS["parquet"](path=write_parquet(tmp_path / "x.parquet"), size=4, channels=3)
    assert data.train.inputs.shape[1:] == (6, 3, 4, 4)
    with pytest.raises(FileRefused):
        LOADERS["parquet"](path=tmp_path / "none.parquet")
    pq.write_table(pa.table({"words": ["a"]}), tmp_path / "odd.parquet")
    with pytest.raises(BadData, match="words"):
        LOADERS["parquet"](path=tmp_path / "odd.parquet")


# ---------------------------------------------------------------------------------------- the user's own


def test_load_clean_reads_folders_parquet_and_arrays_alike(video, tmp_path):
    for name in "ab":
        video(f"own/{name}/1.mp4", [80] * 6)
    batch, classes = load_clean(tmp_path / "own", 8, frames=2, every=1, classes=["z", "a", "b"])
    assert classes == ("z", "a", "b")
    assert batch.targets.tolist() == [1, 2]
    assert batch.inputs.shape == (2, 2, 3, 8, 8)
    np.savez(tmp_path / "own.npz", clips=batch.inputs.numpy(), labels=batch.targets.numpy())
    again, _ = load_clean(tmp_path / "own.npz")
    assert torch.equal(again.inputs, batch.inputs)
    assert load_clean(write_parquet(tmp_path / "x.parquet"), channels=1)[0].inputs.shape == (40, 6, 1, 6, 6)
    np.savez(tmp_path / "flat.npz", clips=np.zeros((2, 8, 8, 3), np.uint8), labels=np.zeros(2, np.int64))
    with pytest.raises(BadData, match="frames, channels"):
        load_clean(tmp_path / "flat.npz")
    with pytest.raises(FileRefused):
        load_clean(tmp_path / "nowhere")
    with pytest.raises(BadData, match="hold b, not among the classes a"):
        load_clean(tmp_path / "own", classes=["a"])


# ------------------------------------------------------------------------------------------ moving digits


def test_moving_digits_played_backwards_are_another_class():
    """Mean column and row of the ink over time: each class has its own direction, and no frame of it alone tells."""
    data = moving_digits(clips=160)
    assert data.classes[:4] == ("3 right", "3 left", "3 down", "3 up")
    clips = data.train.inputs[:, :, 0]
    ink = (clips > 0.3).float() * clips
    total = ink.sum((2, 3))
    rows = (ink * torch.arange(16.0)[:, None]).sum((2, 3)) / total
    columns = (ink * torch.arange(16.0)).sum((2, 3)) / total
    down, right = rows[:, -1] - rows[:, 0], columns[:, -1] - columns[:, 0]
    move = data.train.targets % 4
    found = torch.where(down.abs() > right.abs(), torch.where(down > 0, 2, 3), torch.where(right > 0, 0, 1))
    assert torch.equal(found, move)
    ends = [torch.stack([rows[move == k][:, [0, -1]], columns[move == k][:, [0, -1]]]) for k in range(4)]
    # where a clip of one direction starts, one of the opposite direction ends
    assert float((ends[0][1, :, 0].mean() - ends[1][1, :, 1].mean()).abs()) < 1.5
    assert float((ends[2][0, :, 0].mean() - ends[3][0, :, 1].mean()).abs()) < 1.5


def test_moving_digits_depend_on_their_seed_alone_and_parts_share_no_digit():
    data, again, other = moving_digits(clips=160), moving_digits(clips=160), moving_digits(clips=160, seed=1)
    assert torch.equal(data.train.inputs, again.train.inputs)
    assert not torch.equal(data.train.inputs[:20], other.train.inputs[:20])
    assert [len(part) for part in (data.train, data.clean, data.test)] == [108, 12, 40]

    def digits(part):
        """The brightest 8x8 patch of the first frame, as a set."""
        out = set()
        for clip in part.inputs:
            windows = clip[0, 0].unfold(0, 8, 1).unfold(1, 8, 1)
            best = windows.flatten(2).sum(2).flatten().argmax()
            patch = windows.flatten(0, 1)[best]
            out.add(tuple((patch > 0.6).flatten().tolist()))
        return out

    assert not digits(data.train) & digits(data.test)
    with pytest.raises(BadOption, match="size is 8"):
        moving_digits(size=8)
