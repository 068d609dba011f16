"""Parquet files of pictures: columns, labels by name and number, and files that unpack to far more than they hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hostile.pictures import encoded, table, written

from unbackdoor.errors import BadData, FileRefused, TooLarge
from unbackdoor.files.reading import limited
from unbackdoor.testing import check_reader
from unbackdoor_pixels.columns import column_of, contents_of, labels_of
from unbackdoor_pixels.tables import Records, read_parts, read_records, records_of

NAMES = {"label_names": ["ant", "bee", "cat"]}
CLASS_LABEL = {
    "huggingface": {"info": {"features": {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}}}
}


def pick(names: Sequence[str]) -> list[str]:
    return [
        column_of(names, None, ("image",), "image_column"),
        column_of(names, None, ("label",), "label_column"),
    ]


def read(path: Path) -> tuple[list[bytes], list[int], tuple[str, ...]]:
    records = read_records([path], pick)
    labels, classes = labels_of(records, "label")
    return contents_of(records, "image"), labels.tolist(), classes


def records(labels: Sequence[Any], **options: Any) -> Records:
    return records_of(table(labels, **options), pick, "a.parquet")


def test_rows_keep_their_pictures_labels_and_names(tmp_path: Path) -> None:
    pictures = [os.urandom(50), b"", os.urandom(9)]
    (tmp_path / "a.parquet").write_bytes(written(table([2, 0, 2], pictures), row_group_size=2))
    found = read_records([tmp_path / "a.parquet"], pick)
    assert contents_of(found, "image") == pictures
    assert found.names == tuple(f"a.parquet row {place}" for place in range(3))
    assert labels_of(found, "label")[0].tolist() == [2, 0, 2]
    assert labels_of(found, "label")[1] == ("0", "1", "2")
    assert found.take([2]).names == ("a.parquet row 2",)


@pytest.mark.parametrize("metadata", [NAMES, CLASS_LABEL])
def test_class_names_of_the_file_place_numbers_in_the_users_order(metadata: dict[str, Any]) -> None:
    found = records([2, 0, 1], metadata=metadata)
    assert labels_of(found, "label")[1] == ("ant", "bee", "cat")
    labels, classes = labels_of(found, "label", ("cat", "dog", "bee", "ant"))
    assert labels.tolist() == [0, 3, 2]
    assert classes == ("cat", "dog", "bee", "ant")
    with pytest.raises(BadData, match="hold cat, not among the classes ant, bee"):
        labels_of(found, "label", ("ant", "bee"))


def test_numbers_without_names_take_the_users_names_by_place() -> None:
    numbered = {"label_names": ["0", "1", "2"]}
    for options in ({}, {"metadata": numbered}):
        labels, classes = labels_of(records([2, 0], **options), "label", ("x", "y", "z"))
        assert labels.tolist() == [2, 0]
        assert classes == ("x", "y", "z")
    with pytest.raises(BadData, match="label 2, but 2 classes are named"):
        labels_of(records([2, 0]), "label", ("x", "y"))
    with pytest.raises(BadData, match="label 3, but 3 classes"):
        labels_of(records([3], metadata=NAMES), "label")


def test_numbers_as_text_are_in_doubt_like_folders() -> None:
    found = records([str(number) for number in range(12)])
    with pytest.raises(BadData, match="order='text' or order='number'"):
        labels_of(found, "label")
    assert labels_of(found, "label", order="number")[0].tolist() == list(range(12))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None, 1], r"a\.parquet row 1 has no label"),
        ([None, None], "row 0 has no label"),
        (["a", None], "row 1 has no label"),
        ([["cat"], ["dog"]], "row 0 has the label .*list"),
        ([True, False], "bool"),
        ([0.0, 1.0], "float"),
        ([{"a": 1}], "dict"),
        ([-1, 0], "label -1"),
        ([0, 4294967295], "4,294,967,295"),
        ([0, 2**63 - 1], "9,223,372,036,854,775,807"),
    ],
)
def test_labels_that_are_no_classes_are_refused_by_row(labels: list[Any], message: str) -> None:
    with pytest.raises(BadData, match=message):
        labels_of(records(labels), "label")
    unsigned = pa.array([0, 2**64 - 1], pa.uint64())
    with pytest.raises(TooLarge):
        labels_of(records(unsigned), "label")


@pytest.mark.parametrize("cell", [None, "text", 7, {"bytes": None, "path": "/etc/hostname"}, {"path": "a.png"}])
def test_a_row_without_a_picture_is_named_and_no_path_is_followed(cell: Any) -> None:
    made = pa.table({"image": pa.array([cell]), "label": [0]})
    with pytest.raises(BadData, match=r"a\.parquet row 0 holds .* in column 'image'; expected an image file as bytes"):
        contents_of(records_of(made, pick, "a.parquet"), "image")


def test_columns_are_found_or_named() -> None:
    with pytest.raises(BadData, match=r"columns are picture, label.*image_column="):
        column_of(["picture", "label"], None, ("image", "img"), "image_column")
    with pytest.raises(BadData, match="label_column is 'klass', but the columns are image, label"):
        column_of(["image", "label"], "klass", ("label",), "label_column")
    assert column_of(["picture"], "picture", ("image",), "image_column") == "picture"


def repeating(rows: int, size: int) -> pa.Table:
    kind = pa.struct([("bytes", pa.binary())])
    indices = pa.array([0] * rows, pa.int32())
    cells = pa.DictionaryArray.from_arrays(indices, pa.array([b"x" * size])).dictionary_decode()
    return pa.table({"image": pa.StructArray.from_arrays([cells], fields=list(kind)), "label": [0] * rows})


@pytest.mark.parametrize(
    "made",
    [
        repeating(500, 2**18),
        pa.table({"image": [[{"bytes": b"x" * 2**20}] * 40] * 3, "label": [0] * 3}),
        pa.table({"image": pa.array([b"\0" * (2**26 + 1)]), "label": [0]}),
        pa.table({"image": pa.array([b"x" * 2**16] * 2000, pa.binary(2**16)), "label": [0] * 2000}),
        pa.table({"image": pa.nulls(5_000_000, pa.binary()), "label": pa.nulls(5_000_000, pa.int64())}),
    ],
    ids=["one value in many rows", "in lists", "zeros", "of fixed length", "rows of nothing"],
)
def test_a_few_kilobytes_do_not_become_gigabytes(made: pa.Table, tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    path.write_bytes(written(made, compression="zstd"))
    assert path.stat().st_size < 2**17
    before = pa.total_allocated_bytes()
    with pytest.raises(TooLarge, match=r"bomb\.parquet.*the limit 'ratio'"):
        read_records([path], pick)
    assert pa.total_allocated_bytes() - before < 2**25


def test_a_file_beyond_the_limit_of_memory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(written(table([0, 1], [os.urandom(4000)] * 2)))
    with limited(memory=3000), pytest.raises(TooLarge, match="the limit 'memory'"):
        read_records([tmp_path / "a.parquet"], pick)
    with limited(memory=5000), pytest.raises(TooLarge, match="the limit 'memory'"):
        read_records([tmp_path / "a.parquet"], pick)


def test_a_table_of_another_library_is_counted_too() -> None:
    made = pa.table({"image": pa.array([b"x" * 1000] * 99).dictionary_encode(), "label": [0] * 99})
    with limited(memory=50_000), pytest.raises(TooLarge, match="the limit 'memory'"):
        records_of(made, pick, "owner/name")
    assert len(records_of(made, pick, "owner/name")) == 99


def test_columns_that_nobody_asked_for_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(written(table([0], [b"x"], other=[[{"a": float("nan")}]])))
    assert set(read_records([tmp_path / "a.parquet"], pick).columns) == {"image", "label"}


def test_parts_are_files_or_a_column(tmp_path: Path) -> None:
    (tmp_path / "x_train.parquet").write_bytes(written(table([0, 1], [b"a", b"b"])))
    (tmp_path / "x_val.parquet").write_bytes(written(table([1], [b"c"])))
    for path in (tmp_path, tmp_path / "x_train.parquet"):
        train, test = read_parts(path, pick)
        assert test is not None
        assert (len(train), len(test)) == (2, 1)
    assert read_parts(tmp_path / "x_train.parquet", pick, sister=False)[1] is None
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "all.parquet").write_bytes(
        written(table([0, 1, 1], [b"a"] * 3, split=["train", "TEST", "train"]))
    )
    train, test = read_parts(tmp_path / "one", pick)
    assert test is not None
    assert (len(train), len(test)) == (2, 1)
    (tmp_path / "one" / "all.parquet").write_bytes(written(table([0], [b"a"], split=["dev"])))
    with pytest.raises(BadData, match=r"split .* holds dev, but no train"):
        read_parts(tmp_path / "one", pick)
    (tmp_path / "one" / "more.parquet").write_bytes(written(table([0], [b"a"])))
    with pytest.raises(FileRefused, match="cannot tell the training files"):
        read_parts(tmp_path / "one", pick)


def test_files_with_other_class_names_are_not_joined(tmp_path: Path) -> None:
    for name, names in (("a", ["ant", "bee"]), ("b", ["bee", "ant"])):
        made = table([0, 1], [b"a", b"b"], metadata={"label_names": names})
        (tmp_path / f"{name}.parquet").write_bytes(written(made))
    with pytest.raises(BadData, match="differ in their columns or class names"):
        read_records([tmp_path / "a.parquet", tmp_path / "b.parquet"], pick)


@pytest.mark.parametrize(
    "metadata",
    [
        {"label_names": "abc"},
        {"label_names": ["a", "a"]},
        {"label_names": [["a"]]},
        {"label_names": {"a": 1}},
        {"huggingface": []},
        {"huggingface": {"info": {"features": 3}}},
        {"huggingface": {"info": {"features": {"label": {"names": 7}}}}},
    ],
)
def test_odd_metadata_end_in_one_error(metadata: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(written(table([0], [b"x"], metadata=metadata)))
    with pytest.raises(BadData, match=r"a\.parquet"):
        read_records([tmp_path / "a.parquet"], pick)


def test_deep_json_in_metadata_ends_in_one_error(tmp_path: Path) -> None:
    made = table([0], [b"x"]).replace_schema_metadata({"label_names": "[" * 100_000})
    (tmp_path / "a.parquet").write_bytes(written(made))
    with pytest.raises(BadData, match=r"a\.parquet"):
        read_records([tmp_path / "a.parquet"], pick)


@pytest.mark.parametrize("count", [2000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_damaged_tables_end_in_one_error(count: int, tmp_path: Path) -> None:
    honest = {
        "a.parquet": written(table([0, 1, 2], [b"abc", b"defg", encoded()[:20]], metadata=NAMES)),
        "b.parquet": written(table(["ant", "bee"], [b"abc", b"abc"], metadata=CLASS_LABEL), compression="zstd"),
    }
    check_reader(read, honest, tmp_path, count=count)
