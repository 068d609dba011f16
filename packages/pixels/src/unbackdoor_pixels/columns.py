"""What the columns of a table mean: which holds pictures, which labels, and which class a label is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unbackdoor.errors import BadData
from unbackdoor.files.class_names import listed, names_of, place_names
from unbackdoor.files.reading import check_classes
from unbackdoor_pixels.tables import Records

__all__ = ["column_of", "contents_of", "labels_of"]


def column_of(names: Sequence[str], given: str | None, usual: Sequence[str], option: str) -> str:
    """The column that ``given`` names, else the first of ``usual`` that is there.

    Args:
        names: Of all columns.
        given: By the user.
        usual: Names that data sets use.
        option: What the user would name it with, such as ``"image_column"``.

    Raises:
        BadData: It is not there.
    """
    if given is not None:
        if given not in names:
            raise BadData(f"{option} is {given!r}, but the columns are {listed(names, 30)}.")
        return given
    found = next((name for name in usual if name in names), None)
    if found is None:
        raise BadData(f"the columns are {listed(names, 30)}, none of {', '.join(usual)}; name it with {option}=....")
    return found


def contents_of(records: Records, column: str) -> list[bytes]:
    """The image files in a column: bytes, or structs with ``bytes``.

    Raises:
        BadData: A row holds none.
    """
    found = []
    for value, name in zip(records.columns[column], records.names, strict=True):
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            held = "nothing" if content is None else f"a {type(content).__name__}"
            raise BadData(f"{name} holds {held} in column {column!r}; expected an image file as bytes.")
        found.append(content)
    return found


def labels_of(
    records: Records, column: str, classes: tuple[str, ...] | None = None, order: str | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Class indices, int64 of shape ``(n,)``, and the names of all classes.

    Args:
        records: Whose ``column`` holds class numbers, or names.
        column: See ``records``.
        classes: All class names in the order of the model's outputs. Numbers that the file's metadata name are placed
            by their names.
        order: For names that are numbers, see `unbackdoor.files.class_names.place_names`.

    Raises:
        BadData: A row has no label or one of another kind, or a name is not among ``classes``.
        TooLarge: A number is beyond `unbackdoor.files.reading.Limits.classes`.
    """
    values, what = records.columns[column], f"column {column!r} of {records.source}"
    for value, name in zip(values, records.names, strict=True):
        if value is None:
            raise BadData(f"{name} has no label in column {column!r}; remove that row.")
        if type(value) is not type(values[0]) or type(value) not in (int, str):
            raise BadData(
                f"{name} has the label {str(value)[:40]!r} ({type(value).__name__}) in column {column!r}; expected a "
                "whole number for each, or a name for each."
            )
    if not values:
        raise BadData(f"{records.source} holds no row; give at least one image with its label.")
    own = records.class_names.get(column) or records.class_names.get("") or ()
    if isinstance(values[0], str):
        placed, named = place_names(set(values), classes or own or None, order, f"the labels in {what}")
        return torch.tensor([placed[value] for value in values], dtype=torch.int64), named
    lowest, highest = min(values), max(values)
    check_classes(what, highest + 1)
    labels = torch.tensor([max(-1, value) for value in values], dtype=torch.int64)
    if lowest < 0 or not own or own == tuple(map(str, range(len(own)))) or classes in (None, own):
        return labels, names_of(labels, classes or own or None, what)
    names_of(labels, own, what)
    placed, named = place_names({own[value] for value in values}, classes, None, f"the labels in {what}")
    return torch.tensor([placed[own[value]] for value in values], dtype=torch.int64), named
