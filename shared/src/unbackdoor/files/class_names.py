"""Which class a name or a number in a user's data means: the one place where class names become labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from torch import Tensor

from unbackdoor.errors import BadData, BadOption, TooLarge
from unbackdoor.files.reading import check_classes, limits, shown

__all__ = ["ORDERS", "given_classes", "listed", "names_of", "place_names"]

ORDERS = ("text", "number")
"""How names that are numbers become labels; see `place_names`."""

_SHOWN = 8


def listed(names: Collection[object], most: int = _SHOWN) -> str:
    """The first few of ``names`` for a message, and how many more there are."""
    some = ", ".join(shown(str(name)) for name in list(names)[:most])
    return some if len(names) <= most else f"{some} and {len(names) - most:,} more"


def given_classes(classes: Sequence[str] | None) -> tuple[str, ...] | None:
    """The option ``classes``: all class names in the order of the model's outputs.

    Raises:
        BadOption: It is one text, holds none or something else than text, or names a class twice.
        TooLarge: There are more than `Limits.classes`.
    """
    if classes is None:
        return None
    is_list = isinstance(classes, Sequence) and not isinstance(classes, str)  # a set has no order
    if not is_list or not all(isinstance(name, str) for name in classes):
        raise BadOption(f"classes is {classes!r}; give a list of class names, such as classes=['cat', 'dog'].")
    if not classes:
        raise BadOption("classes names no class; give all class names in the order of the model's outputs.")
    if len(classes) > limits().classes:
        raise TooLarge(
            f"classes has {len(classes):,} names, but {limits().classes:,} classes are allowed (the limit 'classes')."
        )
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise BadOption(f"classes names {listed(twice)} twice; each class stands for one output of the model.")
    return tuple(classes)


def place_names(
    names: Collection[str], classes: tuple[str, ...] | None, order: str | None, what: str
) -> tuple[dict[str, int], tuple[str, ...]]:
    """The label of each name that occurs, and the names of all classes.

    Args:
        names: That occur, of folders or of labels.
        classes: See `given_classes`; None takes the names themselves.
        order: How names that are all numbers become labels: ``"text"`` sorts them as text, as torchvision does (0, 1,
            10, 2), ``"number"`` takes the number itself. None is refused where the two differ.
        what: Where they occur, such as ``"the class folders of photos"``.

    Raises:
        BadOption: ``order`` is not known, or names are no numbers.
        BadData: A name is not among ``classes``, or its label is in doubt.
        TooLarge: A number is beyond `Limits.classes`.
    """
    if order not in (None, *ORDERS):
        raise BadOption(f"order is {order!r}; it must be one of {', '.join(ORDERS)}.")
    occurring = sorted(names)
    if classes is not None:
        index = {name: place for place, name in enumerate(classes)}
        strangers = [name for name in occurring if name not in index]
        if strangers:
            raise BadData(
                f"{what} hold {listed(strangers)}, not among the classes {listed(classes, 20)}; name all of them with "
                "classes=..., in the order of the model's outputs."
            )
        return {name: index[name] for name in occurring}, classes
    check_classes(what, len(occurring))
    as_text = {name: place for place, name in enumerate(occurring)}
    words = [name for name in occurring if not (name.isascii() and name.isdecimal())]
    if words or not occurring:
        if order == "number":
            raise BadOption(f"order is 'number', but {what} hold {listed(words)}, no number; leave order out.")
        return as_text, tuple(occurring)
    as_number = {name: int(name) for name in occurring}
    if order == "number":
        count = check_classes(what, max(as_number.values()) + 1)
        if len(set(as_number.values())) < len(as_number):
            raise BadData(f"{what} hold one number in several spellings ({listed(occurring)}); rename them.")
        return as_number, tuple(occurring) if as_text == as_number else tuple(map(str, range(count)))
    if order is None and as_text != as_number:
        wrong = next(name for name in reversed(occurring) if as_text[name] != as_number[name])
        raise BadData(
            f"{what} are numbers ({listed(occurring, 4)}) whose labels are in doubt: sorted as text, as torchvision "
            f"does, {wrong} is class {as_text[wrong]}; as a number it is class {as_number[wrong]}. Say which the model "
            "was trained with: order='text' or order='number', or name them all in the order of its outputs with "
            "classes=...."
        )
    return as_text, tuple(occurring)


def names_of(labels: Tensor, classes: tuple[str, ...] | None, what: str | Path) -> tuple[str, ...]:
    """Names of all classes for labels that are numbers: ``classes``, or the numbers up to the highest.

    Args:
        labels: Class indices, int64.
        classes: See `given_classes`.
        what: Where they come from.

    Raises:
        BadData: There is no label, one is negative or has no name.
        TooLarge: One is beyond `Limits.classes`.
    """
    if labels.numel() == 0:
        raise BadData(f"{what} holds no sample; give at least one with its label.")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0:
        raise BadData(f"{what} has the label {lowest}; classes count from 0. Leave out samples without a class.")
    if classes is not None:
        if highest >= len(classes):
            raise BadData(
                f"{what} has the label {highest}, but {len(classes)} classes are named, 0..{len(classes) - 1}."
            )
        return classes
    return tuple(map(str, range(check_classes(what, highest + 1))))
