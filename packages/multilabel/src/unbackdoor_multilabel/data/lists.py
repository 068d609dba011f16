"""Lists of classes, one for each image, to rows of zeros and ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unbackdoor.errors import BadData
from unbackdoor.files.class_names import listed, place_names
from unbackdoor.files.reading import check_bytes, check_classes

__all__ = ["rows_of"]


def rows_of(
    lists: Sequence[Any],
    classes: tuple[str, ...] | None,
    what: str,
    *,
    names: Sequence[str] | None = None,
    own: tuple[str, ...] = (),
    order: str | None = None,
) -> tuple[Tensor, tuple[str, ...]]:
    """Lists of class indices or names as rows of 0 and 1, int64 ``(n, classes)``, and the names of the classes.

    Args:
        lists: One for each image; it may be empty.
        classes: All class names in the order of the model's outputs; None takes ``own``, or what occurs.
        what: Where the lists come from, for messages.
        names: Of the images, for messages.
        own: The names that the data give to class numbers.
        order: For classes that are numbers as text, see `unbackdoor.files.class_names.place_names`.

    Raises:
        BadData: They are no such lists, or name a class that is not there.
        TooLarge: A class number is beyond `unbackdoor.files.reading.Limits.classes`.
    """
    classes = classes or None
    if not lists:
        raise BadData(f"{what} holds no image; give at least one with its classes.")
    called = list(names) if names is not None else [f"image {place}" for place in range(len(lists))]
    for one, name in zip(lists, called, strict=True):
        if not isinstance(one, list | tuple):
            held = "nothing" if one is None else f"a {type(one).__name__}"
            raise BadData(
                f"{what} holds no lists: {name} has {held}; expected a list of class indices or names for each image."
            )
    values = {value for one, name in zip(lists, called, strict=True) for value in _checked(one, name)}
    if values and all(isinstance(value, str) for value in values):
        index, named = place_names(values, classes or own or None, order, f"the labels in {what}")
    elif all(isinstance(value, int) for value in values):
        index, named = _numbered(values, classes, own, what)
    else:
        raise BadData(f"{what} mixes class indices and class names; give one of the two everywhere.")
    check_bytes(f"the label rows of {what}", len(lists) * len(named) * 8)
    rows = torch.zeros(len(lists), len(named), dtype=torch.int64)
    for place, one in enumerate(lists):
        rows[place, [index[value] for value in one]] = 1
    return rows, named


def _checked(one: Sequence[Any], name: str) -> Sequence[Any]:
    for value in one:
        if type(value) not in (int, str):
            raise BadData(f"{name} has the class {str(value)[:40]!r} ({type(value).__name__}); give indices or names.")
    return one


def _numbered(
    values: set[int], classes: tuple[str, ...] | None, own: tuple[str, ...], what: str
) -> tuple[dict[Any, int], tuple[str, ...]]:
    known = own or classes
    if min(values, default=0) < 0:
        raise BadData(f"{what} holds {min(values)}; classes count from 0.")
    count = check_classes(what, max(values, default=-1) + 1)
    if known is None and not values:
        raise BadData(f"{what} names no class at all; name all of them with classes=....")
    if known is not None and count > len(known):
        strangers = sorted(value for value in values if value >= len(known))
        raise BadData(f"{what} holds {listed(strangers)}; there are {len(known)} classes: {listed(known, 20)}.")
    numbers = own == tuple(map(str, range(len(own))))
    if not own or numbers or classes in (None, own):
        named = (classes if classes is not None and (not own or numbers) else known) or tuple(map(str, range(count)))
        if count > len(named):
            raise BadData(f"{what} holds {count - 1}; there are {len(named)} classes: {listed(named, 20)}.")
        return {value: value for value in values}, named
    placed, named = place_names({own[value] for value in values}, classes, None, f"the labels in {what}")
    return {value: placed[own[value]] for value in values}, named
