"""The defender's own images with label rows as people have them: rows are right, or a sentence says why not."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hostile.pictures import PICTURE, encoded, table, written

from unbackdoor.errors import BadData, FileRefused, TooLarge, UnbackdoorError
from unbackdoor.files.reading import limited
from unbackdoor.testing import check_reader
from unbackdoor_cli.options import typed
from unbackdoor_multilabel import KIT, load_clean
from unbackdoor_multilabel.data.lists import rows_of
from unbackdoor_multilabel.data.official import coco, voc

GREY = np.full((4, 4, 3), 9, np.uint8)


def as_typed(path: Path, **words: str) -> Any:
    """`load_clean` with options as they are typed after ``--data-option``."""
    return load_clean(path, **typed(KIT.load_clean, words, "--data-option"))


def listing(root: Path, *entries: Any) -> Path:
    root.mkdir(exist_ok=True)
    (root / "a.png").write_bytes(encoded())
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def entry(labels: Any, name: str = "a.png") -> dict[str, Any]:
    return {"file_name": name, "labels": labels}


# ------------------------------------------------------------------------------------------- lists of classes


def test_some_of_the_classes_keep_the_models_order(tmp_path: Path) -> None:
    root = listing(tmp_path / "own", entry(["dog"]), entry(["cat", "dog"]), entry([]))
    samples, classes = as_typed(root, size="4", classes="dog,emu,cat")
    assert samples.targets.tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 0]]
    assert classes == samples.classes == ("dog", "emu", "cat")
    assert samples.names == ("a.png",) * 3
    with pytest.raises(BadData, match="hold cat, not among the classes dog, emu"):
        as_typed(root, classes="dog,emu")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"a\.png has nothing"),
        ("cat", r"a\.png has a str"),
        ([None], "NoneType"),
        ([["cat"]], "list"),
        ([0.0], "float"),
        ([True], "bool"),
        ([-1], "holds -1"),
        ([0, "cat"], "mixes"),
        ([4294967295], "4,294,967,295"),
        ([2**70], "classes are allowed"),
    ],
)
def test_lists_that_are_no_classes_are_refused_by_image(labels: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=message):
        load_clean(listing(tmp_path / "own", entry(labels)), size=4)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("{", BadData),
        ("[1]", BadData),
        ("3", BadData),
        ('{"file_name": "a.png"}', BadData),
        ('{"file_name": 7, "labels": []}', BadData),
        ('{"file_name": "../a.png", "labels": [0]}', FileRefused),
        ('{"file_name": "/etc/hostname", "labels": [0]}', FileRefused),
        ('{"file_name": "b.png", "labels": [0]}', FileRefused),
        ("[" * 100_000, BadData),
    ],
)
def test_lines_that_are_no_entries_are_refused(line: str, error: type[Exception], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    with pytest.raises(error, match=r"metadata\.jsonl|b\.png"):
        load_clean(listing(tmp_path / "own", entry([0]), line), size=4)


def test_numbers_as_text_are_in_doubt_like_folders(tmp_path: Path) -> None:
    root = listing(tmp_path / "own", *(entry([str(number)]) for number in range(11)))
    with pytest.raises(BadData, match="order='number'"):
        load_clean(root, size=4)
    assert as_typed(root, size="4", order="number")[0].targets.argmax(1).tolist() == list(range(11))


def test_numbers_follow_the_names_of_the_data() -> None:
    lists = [[0], [1, 0], []]
    assert rows_of(lists, None, "x", own=("cat", "dog"))[0].tolist() == [[1, 0], [1, 1], [0, 0]]
    assert rows_of(lists, ("dog", "cat"), "x", own=("cat", "dog"))[0].tolist() == [[0, 1], [1, 1], [0, 0]]
    assert rows_of(lists, ("dog", "cat"), "x", own=("0", "1"))[1] == ("dog", "cat")
    with pytest.raises(BadData, match="not among the classes"):
        rows_of(lists, ("dog",), "x", own=("cat", "dog"))
    with pytest.raises(BadData, match="there are 2 classes"):
        rows_of([[2]], None, "x", own=("cat", "dog"))
    with pytest.raises(BadData, match="names no class at all"):
        rows_of([[]], None, "x")
    with limited(memory=100), pytest.raises(TooLarge):
        rows_of([[99]], None, "x")


def test_columns_can_be_named_as_typed(tmp_path: Path) -> None:
    made = table([[0], [1]], [encoded(), encoded()]).rename_columns(["picture", "kinds"])
    (tmp_path / "a.parquet").write_bytes(written(made))
    with pytest.raises(BadData, match="image_column="):
        load_clean(tmp_path / "a.parquet")
    with pytest.raises(BadData, match="label_column="):
        as_typed(tmp_path / "a.parquet", image_column="picture")
    samples, _ = as_typed(tmp_path / "a.parquet", image_column="picture", label_column="kinds", size="4")
    assert samples.names == ("a.parquet row 0", "a.parquet row 1")


def test_rows_without_a_list_are_named(tmp_path: Path) -> None:
    made = table(pa.array([[0], None]), [encoded(), encoded()])
    (tmp_path / "a.parquet").write_bytes(written(made))
    with pytest.raises(BadData, match=r"a\.parquet row 1 has nothing"):
        load_clean(tmp_path / "a.parquet", size=4)


# ------------------------------------------------------------------------------------------------------ arrays


@pytest.mark.parametrize(
    ("images", "rows", "message"),
    [
        ([GREY] * 2, np.full((2, 3), np.nan), "not all 0 and 1"),
        ([GREY] * 2, np.full((2, 3), -1), "not all 0 and 1"),
        ([GREY] * 2, np.full((2, 3), 0.5), "not all 0 and 1"),
        ([GREY] * 2, np.ones((2, 3), complex), "complex"),
        ([GREY] * 2, np.zeros((2, 0), int), "rows of zeros and ones"),
        ([GREY] * 2, np.zeros((3, 2), int), "for 2 images"),
        ([GREY] * 2, [4294967295, 0], "rows of zeros and ones"),
        (np.full((2, 4, 4, 3), 128.0), np.eye(2), "divide them by 255"),
        (np.full((2, 4, 4, 3), np.nan), np.eye(2), "NaN"),
        (np.zeros((2, 3, 3, 3), np.uint8), np.eye(2), "layout="),
    ],
)
def test_arrays_that_are_no_rows_are_refused(images: Any, rows: Any, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array(images), labels=np.array(rows))
    with pytest.raises(BadData, match=message):
        load_clean(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["bool", "uint8", "uint16", "uint64", "int64", "float32", ">f8"])
def test_rows_may_be_of_any_type_that_says_yes_and_no(kind: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.stack([PICTURE] * 2), labels=np.eye(2).astype(kind))
    samples, _ = load_clean(tmp_path / "a.npz")
    assert torch.equal(samples.targets, torch.eye(2, dtype=torch.int64))
    assert samples.names == ("a.npz image 0", "a.npz image 1")


# ------------------------------------------------------------------------------------------------ VOC and COCO


def lay_voc(root: Path, notes: str, name: str = "1") -> Path:
    base = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    (base / "JPEGImages" / "1.jpg").write_bytes(encoded(GREY, "JPEG"))
    (base / "Annotations" / "1.xml").write_text(notes)
    for part in ("train", "val"):
        (base / "ImageSets" / "Main" / f"{part}.txt").write_text(f"{name}\n" * 3)
    return root


CAT = "<annotation><object><name>cat</name></object></annotation>"


@pytest.mark.parametrize(
    "notes",
    [
        "",
        "<annotation>",
        CAT.replace("cat", "unicorn"),
        '<!DOCTYPE a [<!ENTITY b "' + "c" * 99 + '">]>' + CAT,
        '<!DOCTYPE a SYSTEM "file:///etc/passwd">' + CAT,
        "<annotation><object/></annotation>",
        "<a>" * 100_000,
    ],
)
def test_annotations_of_voc_that_are_none_are_refused(notes: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"1\.xml"):
        voc(path=lay_voc(tmp_path, notes), size=4)


def test_names_in_the_lists_of_voc_stay_inside(tmp_path: Path) -> None:
    assert len(voc(path=lay_voc(tmp_path, CAT), size=4, clean_count=1).clean) == 1
    with pytest.raises(FileRefused, match="outside"):
        voc(path=lay_voc(tmp_path, CAT, "../../../1"), size=4)
    lay_voc(tmp_path, CAT)
    (tmp_path / "VOCdevkit" / "VOC2012" / "JPEGImages" / "1.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with pytest.raises(BadData, match="no image of a kind"):
        voc(path=tmp_path, size=4)


def coco_notes(**changes: Any) -> dict[str, Any]:
    return {
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "images": [{"id": place, "file_name": "1.jpg"} for place in range(3)],
        "annotations": [{"image_id": 0, "category_id": 1}],
        **changes,
    }


def lay_coco(root: Path, notes: Any) -> Path:
    (root / "annotations").mkdir(exist_ok=True)
    for part in ("train2014", "val2014"):
        (root / part).mkdir(exist_ok=True)
        (root / part / "1.jpg").write_bytes(encoded(GREY, "JPEG"))
        text = notes if isinstance(notes, str) else json.dumps(notes)
        (root / "annotations" / f"instances_{part}.json").write_text(text)
    return root


@pytest.mark.parametrize(
    "notes",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"images": [], "annotations": [], "categories": []}',
        coco_notes(images=3),
        coco_notes(images=[{"id": 1}]),
        coco_notes(images=[{"id": None, "file_name": "1.jpg"}]),
        coco_notes(images=[{"id": 1, "file_name": "../1.jpg"}]),
        coco_notes(annotations=[{"image_id": 9, "category_id": 1}]),
        coco_notes(annotations=["x"]),
        coco_notes(categories=[{"id": "a", "name": "cat"}]),
        coco_notes(categories={"id": 1}),
    ],
)
def test_annotations_of_coco_that_are_none_are_refused(notes: Any, tmp_path: Path) -> None:
    with pytest.raises(UnbackdoorError, match=r"instances_train2014\.json|there are no images"):
        coco(path=lay_coco(tmp_path, notes), size=4)


# ----------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("count", [2000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_damaged_lists_end_in_one_error(count: int, tmp_path: Path) -> None:
    root = listing(tmp_path / "own", entry(["dog"]), entry(["cat", "dog"]))
    honest = {"metadata.jsonl": (root / "metadata.jsonl").read_bytes()}
    check_reader(lambda path: load_clean(root, size=4), honest, root, count=count)


@pytest.mark.parametrize("count", [2000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_damaged_arrays_and_tables_end_in_one_error(count: int, tmp_path: Path) -> None:
    out = io.BytesIO()
    np.savez(out, images=np.stack([GREY] * 2), labels=np.eye(2, dtype=np.uint8))
    made = written(table([[0], [1, 0]], [encoded(GREY)] * 2))
    with limited(pixels=1_000_000):
        check_reader(lambda path: load_clean(path, size=4), {"a.npz": out.getvalue()}, tmp_path, count=count)
        check_reader(lambda path: load_clean(path, size=4), {"a.parquet": made}, tmp_path, count=count)


@pytest.mark.parametrize("count", [2000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_damaged_annotations_end_in_one_error(count: int, tmp_path: Path) -> None:
    lay_voc(tmp_path, CAT)
    notes = tmp_path / "VOCdevkit" / "VOC2012" / "Annotations"
    check_reader(lambda path: voc(path=tmp_path, size=4), {"1.xml": CAT.encode()}, notes, count=count)
    lay_coco(tmp_path, coco_notes())
    honest = {"instances_train2014.json": json.dumps(coco_notes()).encode()}
    check_reader(lambda path: coco(path=tmp_path, size=4), honest, tmp_path / "annotations", count=count)
