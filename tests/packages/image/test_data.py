"""Loaders, on files that the tests write."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from unbackdoor.attacker.kit import Splits
from unbackdoor.data import groups_of
from unbackdoor.errors import BadData, BadOption, FileRefused, UnsafeCheckpoint
from unbackdoor_image import KIT, load_clean

Png = Callable[..., bytes]


def _table(png: Png, labels: list[int], *, names: list[str] | None = None, **columns: list[object]) -> pa.Table:
    cells = [{"bytes": png(3 * place % 250), "path": f"{place}.png"} for place in range(len(labels))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"img": pa.array(cells, kind), "label": pa.array(labels, pa.int64()), **columns})
    if names is None:
        return table
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    return table.replace_schema_metadata({"huggingface": json.dumps(features)})


def _sizes(splits: Splits) -> tuple[int, int, int]:
    return len(splits.train), len(splits.clean), len(splits.test)


def test_digits_come_in_three_disjoint_stratified_parts() -> None:
    splits = KIT.data["digits"](seed=0)
    assert _sizes(splits) == (1168, 180, 449)
    assert splits.train.inputs.shape[1:] == (1, 8, 8)
    assert float(splits.train.inputs.max()) == 1.0
    assert int(splits.clean.targets.bincount().min()) >= 17
    rows = torch.cat([part.inputs for part in (splits.train, splits.clean, splits.test)])
    assert len(rows) == 1797
    total = rows.double().flatten(1) @ (torch.arange(64).double() + 1).sqrt()
    other = KIT.data["digits"](seed=1)
    rows = torch.cat([part.inputs for part in (other.train, other.clean, other.test)])
    assert_close(total.sort().values, (rows.double().flatten(1) @ (torch.arange(64).double() + 1).sqrt()).sort().values)
    assert not torch.equal(other.clean.targets, splits.clean.targets)
    assert splits.hints == {"flip": False}


def test_digits_repeat_with_their_seed_and_take_options() -> None:
    first, again = (KIT.data["digits"](seed=5, clean_count=30, size=16) for _ in range(2))
    assert_close(first.clean.inputs, again.clean.inputs, rtol=0, atol=0)
    assert len(first.clean) == 30
    assert first.train.inputs.shape[1:] == (1, 16, 16)
    with pytest.raises(BadOption, match="give one of the two"):
        KIT.data["digits"](clean_count=30, clean_share=0.1)


@pytest.fixture
def cifar(tmp_path: Path, png: Png) -> Path:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    for part, each in (("train", 20), ("test", 3)):
        labels = [label for label in range(10) for _ in range(each)]
        pq.write_table(_table(png, labels, names=names), tmp_path / f"cifar10_{part}.parquet")
    pq.write_table(_table(png, [0, 1]), tmp_path / "other_train.parquet")
    return tmp_path


@pytest.mark.parametrize("file", ["", "cifar10_train.parquet"])
def test_cifar10_holds_the_clean_set_out_of_the_training_part(cifar: Path, file: str) -> None:
    splits = KIT.data["cifar10"](seed=0, path=cifar / file, clean_share=0.1)
    assert _sizes(splits) == (180, 20, 30)
    assert splits.clean.targets.bincount().tolist() == [2] * 10
    assert splits.train.inputs.dtype is torch.uint8
    assert splits.train.inputs.shape[1:] == (3, 6, 6)
    assert splits.classes[3] == "cat"
    assert splits.hints == {"flip": True}
    levels = splits.test.inputs[:, 0, 0, 0]
    assert_close(levels.long(), 3 * torch.arange(30) % 250)


def test_gtsrb_splits_by_track(tmp_path: Path, png: Png) -> None:
    labels = [label for label in range(43) for _ in range(8)]
    tracks = [frame // 2 for _ in range(43) for frame in range(8)]
    train = _table(png, labels, track=tracks)
    pq.write_table(train, tmp_path / "gtsrb_train.parquet")
    pq.write_table(_table(png, list(range(43))), tmp_path / "gtsrb_test.parquet")
    splits = KIT.data["gtsrb"](path=tmp_path, clean_count=43)
    assert _sizes(splits) == (43 * 6, 43, 43)
    assert splits.train.inputs.shape[1:] == (3, 32, 32)
    assert len(splits.classes) == 43
    assert splits.hints == {"flip": False}
    clean, train = groups_of(splits.clean), groups_of(splits.train)
    assert len(clean.unique()) == 43, "a track of each class, and tracks of two classes are two"
    assert not set(clean.tolist()) & set(train.tolist())


def test_gtsrb_of_torchvision_has_its_tracks_from_file_names(tmp_path: Path) -> None:
    base = tmp_path / "gtsrb" / "GTSRB"
    for label in (0, 1):
        (base / "Training" / f"{label:05}").mkdir(parents=True)
        for track in range(4):
            for frame in range(5):
                image = Image.fromarray(np.full((4, 4, 3), 50 * track, dtype=np.uint8))
                image.save(base / "Training" / f"{label:05}" / f"{track:05}_{frame:05}.png")
    (base / "Final_Test" / "Images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(base / "Final_Test" / "Images" / "00000.png")
    (tmp_path / "gtsrb" / "GT-final_test.csv").write_text("Filename;Width;ClassId\n00000.png;4;1\n")
    splits = KIT.data["gtsrb"](path=tmp_path, clean_count=8, size=4)
    clean, train = groups_of(splits.clean), groups_of(splits.train)
    assert not set(clean.tolist()) & set(train.tolist())
    for part in (splits.clean, splits.train):
        own = {
            (label, level // 50)
            for label, level in zip(part.targets.tolist(), part.inputs[:, 0, 0, 0].tolist(), strict=True)
        }
        assert len(own) == len(groups_of(part).unique())
    assert len(splits.train) == 30, "the frames of a held-out track beyond the clean set belong to neither part"


def test_gtsrb_keeps_three_percent_clean_as_in_fip(tmp_path: Path, png: Png) -> None:
    pq.write_table(_table(png, [0, 1] * 100, track=list(range(200))), tmp_path / "gtsrb_train.parquet")
    pq.write_table(_table(png, [0, 1]), tmp_path / "gtsrb_test.parquet")
    assert _sizes(KIT.data["gtsrb"](path=tmp_path)) == (194, 6, 2)
    assert _sizes(KIT.data["gtsrb"](path=tmp_path, clean_share=0.1)) == (180, 20, 2)


def test_parquet_takes_a_split_column_and_label_names(tmp_path: Path, png: Png) -> None:
    table = _table(png, [0, 1] * 10, split=["train"] * 16 + ["val"] * 4)
    table = table.replace_schema_metadata({"label_names": json.dumps(["left", "right"])})
    pq.write_table(table, tmp_path / "all.parquet")
    splits = KIT.data["parquet"](path=tmp_path / "all.parquet", clean_count=4, size=5)
    assert _sizes(splits) == (12, 4, 4)
    assert splits.classes == ("left", "right")
    assert splits.test.inputs.shape == (4, 3, 5, 5)


def test_parquet_without_a_test_part_makes_one(tmp_path: Path, png: Png) -> None:
    pq.write_table(_table(png, [0, 1] * 20), tmp_path / "all.parquet")
    assert _sizes(KIT.data["parquet"](path=tmp_path / "all.parquet", clean_count=4)) == (28, 4, 8)


def test_parquet_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"picture": [b"x"], "label": [0]}), tmp_path / "x.parquet")
    with pytest.raises(BadData, match="image_column="):
        KIT.data["parquet"](path=tmp_path / "x.parquet")
    with pytest.raises(BadData, match="no image of a kind"):
        KIT.data["parquet"](path=tmp_path / "x.parquet", image_column="picture")


@pytest.mark.parametrize("name", ["parquet", "cifar10", "gtsrb", "folder"])
def test_data_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileRefused):
        KIT.data[name](path=tmp_path / "nowhere")


def test_hub_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FileRefused, match=r"unbackdoor-image\[hub\]"):
        KIT.data["hub"](path="owner/name")


def test_hub_reads_both_parts(png: Png, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"train": _table(png, [0, 1] * 10, names=["no", "yes"]), "test": _table(png, [1, 0], names=["no", "yes"])}
    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, split: str) -> SimpleNamespace:
        asked.append((name, split))
        return SimpleNamespace(num_rows=tables[split].num_rows, data=SimpleNamespace(table=tables[split]))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    splits = KIT.data["hub"](path="owner/name", clean_count=2)
    assert asked == [("owner/name", "train"), ("owner/name", "test")]
    assert _sizes(splits) == (18, 2, 2)
    assert splits.classes == ("no", "yes")


def test_torchvision_files_that_were_altered_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"not what it should be")
    with pytest.raises(FileRefused, match="torchvision refuses"):
        KIT.data["cifar10"](path=tmp_path)


def test_folder_sorts_classes_by_name(class_folders: Callable[..., Path]) -> None:
    splits = KIT.data["folder"](path=class_folders(["cat", "ant", "bee"], each=10), clean_count=3, flip=True)
    assert splits.classes == ("ant", "bee", "cat")
    assert _sizes(splits) == (21, 3, 6)
    assert splits.clean.targets.tolist() == [0, 1, 2]
    assert splits.clean.inputs[:, 0, 0, 0].tolist() == [10, 20, 0]
    assert splits.hints == {"flip": True}


def test_folder_takes_train_and_test_below(class_folders: Callable[..., Path]) -> None:
    class_folders(["a", "b"], each=6, root="data/train")
    class_folders(["b"], each=2, root="data/test")
    root = class_folders([], root="data")
    splits = KIT.data["folder"](path=root, clean_count=2)
    assert _sizes(splits) == (10, 2, 2)
    assert splits.test.targets.tolist() == [1, 1]


def test_numbered_folders_are_refused_where_the_order_is_in_doubt(class_folders: Callable[..., Path]) -> None:
    root = class_folders([str(label) for label in range(12)], each=1)
    with pytest.raises(BadData, match="order='text' or order='number'"):
        load_clean(root)
    by_number, by_text = (load_clean(root, order=order)[0] for order in ("number", "text"))
    assert_close(by_number.inputs[:, 0, 0, 0].long(), 10 * by_number.targets)
    assert not torch.equal(by_text.targets, by_number.targets)
    assert load_clean(class_folders(["0", "1", "2"], root="few"))[1] == ("0", "1", "2")


def test_load_clean_takes_the_class_order_of_the_model(class_folders: Callable[..., Path]) -> None:
    batch, classes = load_clean(class_folders(["cat", "dog"], each=2), classes=["dog", "emu", "cat"])
    assert batch.targets.tolist() == [2, 2, 0, 0]
    assert classes == ("dog", "emu", "cat")
    with pytest.raises(BadData, match="not among the classes"):
        load_clean(class_folders(["cow"], root="more"), classes=["dog"])


def test_images_of_different_sizes_need_a_size(class_folders: Callable[..., Path], png: Png) -> None:
    root = class_folders(["a", "b"], each=2)
    (root / "a" / "wide.png").write_bytes(png(9, (12, 6)))
    with pytest.raises(BadData, match="give size="):
        load_clean(root)
    assert load_clean(root, size=4)[0].inputs.shape == (5, 3, 4, 4)
    assert load_clean(root, size=4, fit="crop", channels=1)[0].inputs.shape == (5, 1, 4, 4)


def test_a_file_that_is_no_image_is_named(class_folders: Callable[..., Path]) -> None:
    root = class_folders(["a", "b"], each=2)
    (root / "b" / "notes.png").write_text("no image")
    with pytest.raises(BadData, match=r"notes\.png"):
        load_clean(root)


def test_load_clean_reads_arrays_and_tensors(tmp_path: Path) -> None:
    images, labels = torch.randint(0, 256, (6, 5, 5, 3)).to(torch.uint8), torch.arange(6) % 3
    np.savez(tmp_path / "clean.npz", images=images.numpy(), labels=labels.numpy())
    torch.save({"x": images.permute(0, 3, 1, 2), "y": labels}, tmp_path / "clean.pt")
    for name in ("clean.npz", "clean.pt"):
        batch, classes = load_clean(tmp_path / name)
        assert_close(batch.inputs, images.permute(0, 3, 1, 2), rtol=0, atol=0)
        assert_close(batch.targets, labels)
        assert classes == ("0", "1", "2")
    assert load_clean(tmp_path / "clean.npz", size=10)[0].inputs.shape == (6, 3, 10, 10)


def test_load_clean_never_unpickles(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", images=np.array([{"a": 1}], dtype=object), labels=np.arange(1))
    torch.save({"x": pytest.raises}, tmp_path / "bad.pt")
    with pytest.raises(BadData, match="unpickling"):
        load_clean(tmp_path / "bad.npz")
    with pytest.raises(UnsafeCheckpoint):
        load_clean(tmp_path / "bad.pt")


@pytest.mark.parametrize("arrays", [{"pictures": 1}, {"images": 1}])
def test_arrays_without_the_two_names_are_refused(arrays: dict[str, int], tmp_path: Path) -> None:
    np.savez(tmp_path / "clean.npz", **{name: np.zeros((2, 4, 4, 3)) for name in arrays})
    with pytest.raises(BadData, match="images and labels"):
        load_clean(tmp_path / "clean.npz")


def test_tiny_imagenet_reads_its_own_layout(tmp_path: Path, png: Callable[..., bytes]) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for place, name in enumerate(("n01", "n02")):
        for number in range(20):
            file = root / "train" / name / "images" / f"{name}_{number}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(100 * place))
    (root / "val" / "images").mkdir(parents=True)
    for number, level in enumerate((100, 0, 100)):
        (root / "val" / "images" / f"val_{number}.JPEG").write_bytes(png(level))
    lines = [f"val_{number}.JPEG\t{name}\t0\t0\t5\t5" for number, name in enumerate(("n02", "n01", "n02"))]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines))
    found = KIT.data["tinyimagenet"](path=root)
    assert (len(found.train), len(found.clean)) == (38, 2)
    assert found.test.targets.tolist() == [1, 0, 1]
    assert found.test.inputs[:, 0, 0, 0].tolist() == [100, 0, 100]
    (root / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(BadData, match=r"val_1\.JPEG"):
        KIT.data["tinyimagenet"](path=root)


def test_imagenet_is_cut_out_of_the_centre_with_three_percent_clean(
    class_folders: Callable[..., Path], tmp_path: Path
) -> None:
    class_folders(["a", "b"], 50, "images/train")
    class_folders(["a", "b"], 2, "images/val")
    found = KIT.data["imagenet"](path=tmp_path / "images", size=4)
    assert found.train.inputs.shape[1:] == (3, 4, 4)
    assert (len(found.train), len(found.clean), len(found.test)) == (97, 3, 4)
