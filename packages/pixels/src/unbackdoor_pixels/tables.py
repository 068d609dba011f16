"""The one reader of Parquet files of pictures: what a file unpacks to is counted before it is unpacked."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unbackdoor.errors import BadData, FileRefused
from unbackdoor.files.class_names import listed
from unbackdoor.files.reading import check_bytes, check_classes, check_file, reading, shown

__all__ = ["TEST_PARTS", "Pick", "Records", "find_files", "read_parts", "read_records", "records_of"]

TEST_PARTS = ("test", "val", "valid", "validation")
"""What a test part is called, in names of files and in a column ``split``."""

_MOST_ROWS = 1024
_AT_ONCE = 2**27
"""Bytes that are unpacked at once, about."""
_INDEX = 8

Pick = Callable[[Sequence[str]], Sequence[str]]
"""From the names of all columns to those that are read; raises where one is missing."""


@dataclass(frozen=True)
class Records:
    """Rows of a table as plain Python values.

    Attributes:
        columns: A list of one length for each column that was picked.
        names: Of the rows, such as ``clean.parquet row 12`` (counted from 0), for messages.
        source: What they were read from, for messages.
        class_names: For each column of class numbers the names that the file's metadata give them.
    """

    columns: Mapping[str, list[Any]]
    names: tuple[str, ...]
    source: str
    class_names: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.names)

    def take(self, places: Sequence[int]) -> Records:
        """The rows at ``places``."""
        columns = {name: [values[place] for place in places] for name, values in self.columns.items()}
        return replace(self, columns=columns, names=tuple(self.names[place] for place in places))


def find_files(path: Path, name: str = "") -> tuple[list[Path], list[Path]]:
    """Training and test files at ``path``: a file and its sister, or a folder with all shards of both.

    Args:
        path: ``.../x_train.parquet`` finds ``.../x_test.parquet``; a folder is searched with its sub-folders.
        name: Where a folder holds several data sets, files whose name starts with this are preferred.

    Raises:
        FileRefused: There is no Parquet file, or it cannot be told which are for training.
    """
    if path.is_file():
        sisters = [path.with_name(path.name.replace("train", word)) for word in TEST_PARTS if "train" in path.name]
        return [path], [sister for sister in sisters if sister.is_file()][:1]
    files = sorted(file for file in path.rglob("*.parquet") if file.is_file()) if path.is_dir() else []
    files = [file for file in files if name and file.name.startswith(name)] or files
    if not files:
        raise FileRefused(
            f"no Parquet file at {path}; give a file such as x_train.parquet or the folder that holds it."
        )
    if len(files) == 1:
        return files, []
    train = [file for file in files if "train" in file.stem.lower()]
    tested = [[file for file in files if word in file.stem.lower() and file not in train] for word in TEST_PARTS]
    test = next((found for found in tested if found), [])
    if not train and test:
        train = [file for file in files if not any(file in found for found in tested)]
    if train:
        return train, test
    raise FileRefused(
        f"cannot tell the training files in {path} ({listed([file.name for file in files])}); name them ...train... or "
        "give one file."
    )


def read_parts(path: Path, pick: Pick, *, sister: bool = True) -> tuple[Records, Records | None]:
    """Training and test rows at ``path``: of files for each (see `find_files`), else by a column ``split``.

    Args:
        path: File or folder.
        pick: From the names of all columns to those that are read.
        sister: Whether the test file beside a training file is read with it.

    Raises:
        FileRefused: There is no such file.
        BadData: It cannot be read, or holds no row to train on.
        TooLarge: It declares or unpacks to more than the limits allow.
    """
    train_files, test_files = find_files(path)
    if test_files and (sister or not path.is_file()):
        return read_records(train_files, pick), read_records(test_files, pick)
    records = read_records(train_files, lambda names: [*pick(names), *(["split"] if "split" in names else [])])
    if "split" not in records.columns:
        return records, None
    words = [str(word).lower() for word in records.columns["split"]]
    trained = [place for place, word in enumerate(words) if word == "train"]
    tested = [place for place, word in enumerate(words) if word in TEST_PARTS]
    if not trained:
        raise BadData(
            f"the column split of {records.source} holds {listed(sorted(set(words)))}, but no train; call the training "
            "part so, or remove the column."
        )
    return records.take(trained), records.take(tested) if tested else None


def read_records(files: Sequence[Path], pick: Pick) -> Records:
    """The picked columns of all files, one after the other.

    Raises:
        FileRefused: There is no such file.
        BadData: A file cannot be read, lacks a column or has other class names than the first.
        TooLarge: It declares or unpacks to more than the limits allow.
    """
    parts = [_read_file(file, pick) for file in files]
    first = parts[0]
    for part in parts[1:]:
        if set(part.columns) != set(first.columns) or part.class_names != first.class_names:
            raise BadData(f"{part.source} and {first.source} differ in their columns or class names; give one of them.")
    columns = {name: [value for part in parts for value in part.columns[name]] for name in first.columns}
    source = first.source if len(parts) == 1 else f"{first.source} and {len(parts) - 1} more"
    return Records(columns, tuple(name for part in parts for name in part.names), source, first.class_names)


def _read_file(path: Path, pick: Pick) -> Records:
    stored = check_file(path).stat().st_size
    source = shown(path)
    with reading(source, "fetch it again"):
        parquet = importlib.import_module("pyarrow.parquet")
        metadata = parquet.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
        picked = list(dict.fromkeys(pick(schema.names)))
        declared = _declared(metadata, picked)
        check_bytes(source, declared, stored)
        rows = max(1, min(_MOST_ROWS, _AT_ONCE * max(1, metadata.num_rows) // max(1, declared)))
        # read so, each value is held once, however many rows repeat it, and what all would take can be counted
        repeated = [leaf.path for leaf in _leaves(metadata, picked) if leaf.physical_type == "BYTE_ARRAY"]
        unpacked = 0
        with parquet.ParquetFile(path, read_dictionary=repeated) as file:
            for group in range(metadata.num_row_groups):  # each has dictionaries of its own
                for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=picked):
                    unpacked += sum(_unpacked(batch.column(name)) for name in picked)
                    check_bytes(source, unpacked, stored)
        columns: dict[str, list[Any]] = {name: [] for name in picked}
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=rows, columns=picked):
                for name in picked:
                    columns[name].extend(batch.column(name).to_pylist())
    count = len(columns[picked[0]]) if picked else 0
    names = tuple(f"{shown(path.name)} row {place}" for place in range(count))
    return Records(columns, names, source, _class_names(schema.metadata or {}, source))


def _leaves(metadata: Any, picked: Sequence[str]) -> list[Any]:
    """The columns of plain values that the picked ones consist of."""
    leaves = [metadata.schema.column(place) for place in range(metadata.num_columns)]
    return [leaf for leaf in leaves if leaf.path in picked or leaf.path.split(".", 1)[0] in picked]


def _declared(metadata: Any, picked: Sequence[str]) -> int:
    """Bytes that a file declares: its pages, or one value of each column in each row where those are more.

    What it says of single chunks of columns is not asked for: pyarrow ends the process where that is damaged.
    """
    pages = sum(int(metadata.row_group(place).total_byte_size) for place in range(metadata.num_row_groups))
    widths = [
        int(leaf.length) if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else _INDEX
        for leaf in _leaves(metadata, picked)
    ]
    return max(pages, int(metadata.num_rows) * sum(widths))


def _unpacked(array: Any) -> int:
    """Bytes of an arrow array once every reference into a dictionary is replaced by what it refers to."""
    kinds = importlib.import_module("pyarrow.types")
    if kinds.is_dictionary(array.type):
        compute = importlib.import_module("pyarrow.compute")
        values = array.dictionary
        if not len(array) or not len(values):
            return 0
        if kinds.is_binary(values.type) or kinds.is_string(values.type):
            lengths = compute.take(compute.binary_length(values), array.indices)
            return int(compute.sum(lengths).as_py() or 0)
        return int(len(array) * max(1, values.nbytes // len(values)))
    if kinds.is_struct(array.type):
        return sum(_unpacked(array.field(place)) for place in range(array.type.num_fields))
    if kinds.is_list(array.type) or kinds.is_large_list(array.type) or kinds.is_fixed_size_list(array.type):
        return _unpacked(array.flatten()) + _INDEX * len(array)
    return int(array.nbytes)


def records_of(table: Any, pick: Pick, source: str) -> Records:
    """The picked columns of a `pyarrow.Table` that another library has read.

    Raises:
        BadData: A column is missing or cannot be read.
        TooLarge: They take more than the limits allow.
    """
    with reading(source, "fetch it again"):
        picked = list(dict.fromkeys(pick(table.column_names)))
        check_bytes(source, sum(_unpacked(chunk) for name in picked for chunk in table.column(name).chunks))
        columns = {name: table.column(name).to_pylist() for name in picked}
        names = tuple(f"{shown(source)} row {place}" for place in range(table.num_rows))
        return Records(columns, names, source, _class_names(table.schema.metadata or {}, source))


def _class_names(metadata: Mapping[bytes, bytes], source: str) -> dict[str, tuple[str, ...]]:
    """Class names by column, as the Hub keeps them (``ClassLabel``, or a list of it), ``""`` for any column."""
    found: dict[str, tuple[str, ...]] = {}
    with reading(f"the metadata of {source}", "write them anew"):
        if b"label_names" in metadata:
            found[""] = _texts(json.loads(metadata[b"label_names"]), source)
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        for column, feature in features.items():
            inner = feature[0] if isinstance(feature, list) and feature else feature
            inner = inner.get("feature", inner) if isinstance(inner, dict) else {}
            if isinstance(inner, dict) and inner.get("names"):
                found[column] = _texts(inner["names"], source)
    return found


def _texts(names: Any, source: str) -> tuple[str, ...]:
    texts = isinstance(names, list) and all(isinstance(name, str | int) for name in names)
    if not texts or len(set(map(str, names))) < len(names):
        raise BadData(f"the class names in the metadata of {source} are no list of different names; write it anew.")
    check_classes(source, len(names))
    return tuple(map(str, names))
