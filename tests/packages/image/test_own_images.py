"""The defender's own images as people have them: labels and pixels are right, or a sentence says why not."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hostile.pictures import PICTURE, encoded, table, written
from PIL import Image

from unbackdoor.errors import BadData, BadOption, TooLarge, UnbackdoorError
from unbackdoor.files.reading import limited
from unbackdoor.testing import check_reader
from unbackdoor_cli.options import typed
from unbackdoor_image import KIT, load_clean

Make = Callable[..., Path]
GREY = np.full((4, 4, 3), 9, np.uint8)


@pytest.fixture
def lay(tmp_path: Path) -> Make:
    """``lay({path: content})``: a folder with these files."""

    def make(files: dict[str, bytes], root: str = "photos") -> Path:
        for name, content in files.items():
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / root

    return make


def as_typed(path: Path, **words: str) -> Any:
    """`load_clean` with options as they are typed after ``--data-option``."""
    return load_clean(path, **typed(KIT.load_clean, words, "--data-option"))


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


# ------------------------------------------------------------------------------------------------------ folders


def test_three_of_ten_classes_keep_their_places_and_an_unknown_one_is_named(lay: Make) -> None:
    root = lay({"cat/1.png": encoded(), "truck/1.png": encoded(), "bird/1.png": encoded()})
    ten = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
    samples, classes = as_typed(root, classes=ten)
    assert dict(zip(samples.names, samples.targets.tolist(), strict=True)) == {
        "bird/1.png": 2,
        "cat/1.png": 3,
        "truck/1.png": 9,
    }
    assert classes == samples.classes == tuple(ten.split(","))
    with pytest.raises(BadData, match=r"hold truck, not among the classes bird, cat"):
        as_typed(root, classes="bird,cat")


def test_train_and_val_are_parts_and_no_classes(lay: Make) -> None:
    root = lay({"train/cat/1.png": encoded(), "train/dog/1.png": encoded(), "val/cat/1.png": encoded()})
    with pytest.raises(BadData, match=r"give the one whose images are meant, such as .*photos/train"):
        load_clean(root)
    assert load_clean(root / "train")[1] == ("cat", "dog")


def test_checkpoints_of_notebooks_and_leftovers_of_archives_are_passed_over(lay: Make) -> None:
    root = lay({"cat/1.png": encoded(), "dog/1.png": encoded()})
    for junk in (
        "__MACOSX/cat/._1.png",
        ".ipynb_checkpoints/1.png",
        "cat/.ipynb_checkpoints/1-checkpoint.png",
        "Thumbs.db",
    ):
        (root / junk).parent.mkdir(parents=True, exist_ok=True)
        (root / junk).write_bytes(encoded())
    samples, classes = load_clean(root)
    assert classes == ("cat", "dog")
    assert samples.names == ("cat/1.png", "dog/1.png")


def test_gif_and_jfif_and_linked_folders_are_read_and_the_rest_is_told(lay: Make, tmp_path: Path) -> None:
    root = lay({"cat/1.gif": encoded(kind="GIF"), "dog/1.jfif": encoded(kind="JPEG"), "dog/2.heic": b"x"})
    elsewhere = lay({"x/3.png": encoded()}, "elsewhere") / "x"
    (root / "cat" / "more").symlink_to(elsewhere)
    (root / "cat" / "up").symlink_to("..")
    samples, _ = load_clean(root)
    assert samples.names == ("cat/1.gif", "cat/more/3.png", "dog/1.jfif")
    told = " ".join(samples.notices)
    assert "1 .heic" in told
    assert "cat/up" in told


def test_images_are_upright_and_sixteen_bits_are_scaled(lay: Make) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    deep = (PICTURE[..., 0].astype(np.uint16) * 257).astype(np.uint16)
    root = lay({"a/1.png": encoded(exif=exif), "b/1.png": encoded(deep), "b/2.tif": encoded(deep, "TIFF")})
    samples, _ = load_clean(root)
    assert torch.equal(samples.inputs[0], torch.from_numpy(PICTURE[::-1, ::-1].copy()).permute(2, 0, 1))
    for place in (1, 2):
        assert torch.equal(samples.inputs[place, 0], torch.from_numpy(PICTURE[..., 0].copy()))
    assert any("a/1.png" in notice and "upright" in notice for notice in samples.notices)


def test_numbers_can_be_put_in_order_as_typed(lay: Make) -> None:
    root = lay({f"{number}/1.png": encoded() for number in range(11)})
    with pytest.raises(BadData, match="order='number'"):
        load_clean(root)
    assert as_typed(root, order="number")[0].targets[2] == 10
    assert as_typed(root, classes=",".join(map(str, range(11))))[0].targets[2] == 10


def test_a_missing_class_of_gtsrb_does_not_shift_the_others(tmp_path: Path) -> None:
    base = tmp_path / "gtsrb" / "GTSRB"
    for number in (0, 2, 42):
        (base / "Training" / f"{number:05}").mkdir(parents=True)
        for place in range(40):
            (base / "Training" / f"{number:05}" / f"{place}.ppm").write_bytes(encoded(kind="PPM"))
    (base / "Final_Test" / "Images").mkdir(parents=True)
    (base / "Final_Test" / "Images" / "0.ppm").write_bytes(encoded(kind="PPM"))
    listing = tmp_path / "gtsrb" / "GT-final_test.csv"
    listing.write_text("Filename;Width;ClassId\n0.ppm;8;42\n")
    found = KIT.data["gtsrb"](path=tmp_path)
    assert sorted(found.train.targets.unique().tolist()) == [0, 2, 42]
    assert found.test.targets.tolist() == [42]
    for line in ("../../0.ppm;8;4", "0.ppm;8;-1", "0.ppm;8;43", "0.ppm;8;x", "0.ppm"):
        listing.write_text(f"Filename;Width;ClassId\n{line}\n")
        with pytest.raises(UnbackdoorError):
            KIT.data["gtsrb"](path=tmp_path)


# ----------------------------------------------------------------------------------------------------- Parquet


def test_columns_can_be_named_as_typed(tmp_path: Path) -> None:
    made = table([0, 1], [encoded(), encoded()]).rename_columns(["picture", "kind"])
    (tmp_path / "a.parquet").write_bytes(written(made))
    with pytest.raises(BadData, match="image_column="):
        load_clean(tmp_path / "a.parquet")
    with pytest.raises(BadData, match="label_column="):
        as_typed(tmp_path / "a.parquet", image_column="picture")
    samples, _ = as_typed(tmp_path / "a.parquet", image_column="picture", label_column="kind")
    assert samples.names == ("a.parquet row 0", "a.parquet row 1")


def test_numbers_of_a_table_follow_the_names_and_not_the_place(tmp_path: Path) -> None:
    made = table([0, 1], [encoded(), encoded()], metadata={"label_names": ["cat", "dog"]})
    (tmp_path / "a.parquet").write_bytes(written(made))
    assert as_typed(tmp_path / "a.parquet", classes="dog,emu,cat")[0].targets.tolist() == [2, 0]


@pytest.mark.parametrize("labels", [[0, None], [["cat"], ["dog"]], [True, False], [0.0, 1.0], [-1, 0], [0, 2**32 - 1]])
def test_labels_of_a_table_that_are_none_are_refused(labels: list[Any], tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(written(table(labels, [encoded(), encoded()])))
    with pytest.raises(BadData):
        load_clean(tmp_path / "a.parquet")


def test_a_picture_that_cannot_be_read_is_named_by_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(written(table([0, 1], [encoded(), b"%!PS-Adobe-3.0 EPSF-3.0"])))
    with pytest.raises(BadData, match=r"a\.parquet row 1 is no image of a kind"):
        load_clean(tmp_path / "a.parquet")


# ------------------------------------------------------------------------------------------------------ arrays


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([GREY] * 2, [0, 4294967295], "4,294,967,295"),
        ([GREY] * 2, [-1, 0], "sample 0"),
        ([GREY] * 2, np.array([0, 2**63], np.uint64), "9,223,372,036,854,775,808"),
        ([GREY] * 2, np.array([True, False]), "bool"),
        ([GREY] * 2, [0.0, 1.0], "float64"),
        ([GREY] * 2, np.array([0, 1], complex), "complex"),
        ([GREY] * 2, ["cat", "dog"], "no numbers"),
        ([GREY] * 2, [0, 1, 2], "expected 2 whole numbers"),
        (np.full((2, 4, 4, 3), 128.0), [0, 1], "divide them by 255"),
        (np.full((2, 4, 4, 3), -1.5), [0, 1], "normalised"),
        (np.full((2, 4, 4, 3), np.nan), [0, 1], "NaN"),
        (np.ones((2, 4, 4, 3), bool), [0, 1], "bool"),
        (np.ones((2, 4, 4, 3), complex), [0, 1], "complex"),
        (np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, int), "no pixel"),
        (np.zeros((2, 3, 3, 3), np.uint8), [0, 1], "layout="),
    ],
)
def test_arrays_that_are_no_labelled_images_are_refused(images: Any, labels: Any, message: str, tmp_path: Path) -> None:
    path = npz(tmp_path / "clean.npz", images=np.array(images), labels=np.array(labels))
    with pytest.raises(BadData, match=message):
        load_clean(path)


def test_arrays_of_sixteen_bits_are_scaled_and_said(tmp_path: Path) -> None:
    deep = (np.stack([PICTURE] * 2).astype(np.uint16) * 257).astype(np.uint16)
    samples, _ = load_clean(npz(tmp_path / "clean.npz", images=deep, labels=[0, 1]))
    assert torch.equal(samples.inputs[0], torch.from_numpy(PICTURE.copy()).permute(2, 0, 1))
    assert "16 bits" in samples.notices[0]


@pytest.mark.parametrize("kind", [">f4", ">i8", "<u2", "float16"])
def test_numbers_of_any_byte_order_and_texts_beside_them_do_not_matter(kind: str, tmp_path: Path) -> None:
    path = npz(
        tmp_path / "clean.NPZ.npz",
        images=np.stack([GREY // 9] * 2).astype(kind),
        labels=np.array([0, 1], ">i4"),
        names=np.array(["cat", "dog"]),
    )
    samples, _ = load_clean(path)
    assert samples.targets.tolist() == [0, 1]
    assert float(samples.inputs.max()) == 1


def test_the_layout_can_be_said_as_typed(tmp_path: Path) -> None:
    images = np.arange(54, dtype=np.uint8).reshape(2, 3, 3, 3)
    path = npz(tmp_path / "clean.npz", images=images, labels=[0, 1])
    assert torch.equal(as_typed(path, layout="channels_first")[0].inputs, torch.from_numpy(images))
    with pytest.raises(BadOption, match="layout"):
        as_typed(path, layout="nchw")


def test_a_view_that_repeats_a_few_bytes_is_refused(tmp_path: Path) -> None:
    images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(1_000_000, 3, 64, 64)
    torch.save({"images": images, "labels": torch.zeros(1, dtype=torch.int64).expand(1_000_000)}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 4000
    with pytest.raises(TooLarge):
        load_clean(tmp_path / "a.pt")


def test_class_names_must_cover_the_labels_of_an_array(tmp_path: Path) -> None:
    path = npz(tmp_path / "clean.npz", images=[GREY] * 2, labels=[0, 2])
    assert as_typed(path, classes="a,b,c")[1] == ("a", "b", "c")
    with pytest.raises(BadData, match="label 2, but 2 classes are named"):
        as_typed(path, classes="a,b")


def test_samples_have_names_in_every_form(lay: Make, tmp_path: Path) -> None:
    path = npz(tmp_path / "clean.npz", images=[GREY] * 2, labels=[0, 1])
    assert load_clean(path)[0].sample_name(1) == "clean.npz image 1"
    samples, _ = load_clean(lay({"cat/1.png": encoded(), "dog/2.png": encoded()}))
    assert samples.sample_name(1) == "dog/2.png"
    assert samples.class_name(1) == "'dog' (class 1)"
    parts = KIT.data["folder"](path=lay({f"cat/{n}.png": encoded() for n in range(12)}), clean_count=2)
    assert all(name.endswith(".png") for name in parts.clean.names or ())
    assert parts.clean.classes == ("cat", "dog")


# ----------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("count", [2000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_damaged_arrays_end_in_one_error(count: int, tmp_path: Path) -> None:
    arrays = {"images": np.stack([GREY] * 2), "labels": np.array([0, 1])}
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, **arrays)
    np.savez_compressed(packed, **arrays)
    honest = {"a.npz": plain.getvalue(), "b.npz": packed.getvalue(), "a.safetensors": safetensors.numpy.save(arrays)}
    check_reader(load_clean, honest, tmp_path, count=count)


@pytest.mark.parametrize("count", [2000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_damaged_folders_and_tables_end_in_one_error(count: int, lay: Make, tmp_path: Path) -> None:
    root = lay({"dog/1.png": encoded(GREY), "cat/1.jpg": encoded(GREY, "JPEG")})
    with limited(pixels=1_000_000):
        check_reader(lambda path: load_clean(root, 4), {"1.png": encoded(GREY)}, root / "cat", count=count)
        honest = {"a.parquet": written(table([0, 1], [encoded(GREY)] * 2))}
        check_reader(load_clean, honest, tmp_path, count=count)


def test_odd_sources_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "device.npz").symlink_to("/dev/zero")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "nothing").mkdir()
    for name in ("pipe.npz", "device.npz", "empty.npz", "nothing", "missing.npz", "\0"):
        with pytest.raises(UnbackdoorError):
            load_clean(tmp_path / name)
