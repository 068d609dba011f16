"""Which name stands for which output of the model: shown to the user, and refused where it cannot be known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from unbackdoor.errors import BadData
from unbackdoor.files.class_lists import in_list

__all__ = ["check_count", "numbered", "outputs_of", "shown_order"]

Tell = Callable[[], str | None]
"""Gives a sentence without its full stop; None where nothing can be said."""

_ON_A_LINE = 12
_ENDS = 3


def numbered(classes: Sequence[str]) -> bool:
    """Whether the names are the labels' own numbers, so that a class without samples shifts no other."""
    return all(name == str(label) for label, name in enumerate(classes))


def check_count(
    classes: Sequence[str], outputs: int, data: str | Path, *, named: bool, tell: Tell | None = None
) -> None:
    """Refuse class names that are fewer or more than the model's outputs: each would stand for another's output.

    Args:
        classes: In the order of their labels.
        outputs: Of the model.
        data: Where the samples lie.
        named: Whether the user gave the names; else they are those that occur.
        tell: Says, by the model's answers, which output each class means; None where there is no trained model.

    Raises:
        BadData: Says both numbers, which class is missing where that can be known, and which flag mends it.
    """
    if len(classes) == outputs or (numbered(classes) and len(classes) < outputs):
        return
    model = f"the model has {outputs} output{'s' * (outputs != 1)}"
    if named:
        raise BadData(
            f"--classes names {len(classes)} classes ({_listed(classes)}), but {model}; give as many names as outputs, "
            "in their order."
        )
    found = f"{data} has {len(classes)} class{'es' * (len(classes) != 1)} ({_listed(classes)}), but {model}"
    if len(classes) > outputs:
        raise BadData(
            f"{found}; leave out the classes that the model does not know, or give the right number: --num-classes N."
        )
    reason = None if tell is None else tell()
    if reason is not None:
        raise BadData(f"{found}: {reason}.")
    known = in_list(classes)
    if known is not None and len(known[1]) == outputs:
        absent = [name for name in known[1] if name not in known[0]]
        raise BadData(
            f"{found}; by the names, there are no samples of {_listed(absent)}. Give all class names in the order of "
            f"the outputs, spelt as the folders are: --classes {_all(known, classes)}."
        )
    raise BadData(
        f"{found}, so it is not known which output each class stands for; give all class names in the order of the "
        "outputs, those without samples too: --classes A,B,C."
    )


def _all(known: tuple[tuple[str, ...], tuple[str, ...]], classes: Sequence[str]) -> str:
    own = dict(zip(known[0], classes, strict=True))
    return "A,B,C" if len(known[1]) > _ON_A_LINE else ",".join(own.get(name, name) for name in known[1])


def outputs_of(
    build: Callable[[int], nn.Module], count: int, shapes: Sequence[tuple[str, tuple[int, ...]]]
) -> int | None:
    """How many outputs the model of a checkpoint has: what its last layer's tensors say; None if they do not agree.

    The last layer is where the architecture differs between ``count`` classes and one more.

    Args:
        build: Makes the architecture for a number of classes.
        count: Which was tried.
        shapes: Of the checkpoint's tensors, by name; a prefix before the model's names does not matter.
    """
    one, other = (
        {name: tuple(value.shape) for name, value in build(number).state_dict().items() if hasattr(value, "shape")}
        for number in (count, count + 1)
    )
    found: set[int] = set()
    for name, shape in one.items():
        more = other.get(name, shape)
        if len(more) != len(shape) or more == shape:
            continue
        sides = [side for side, (here, there) in enumerate(zip(shape, more, strict=True)) if there - here == 1]
        stored = [given for full, given in shapes if full == name or full.endswith(f".{name}")]
        for given in stored:
            fits = len(given) == len(shape) and len(sides) == 1
            rest = fits and all(
                a == b for side, (a, b) in enumerate(zip(given, shape, strict=True)) if side != sides[0]
            )
            found.add(given[sides[0]] - shape[sides[0]] + count if rest else -1)
    return found.pop() if len(found) == 1 and found != {-1} else None


def shown_order(classes: Sequence[str] | None) -> str:
    """``Classes: 0 cat, 1 dog.`` in a line, shortened where there are many; empty where there are none."""
    if not classes:
        return ""
    if numbered(classes):
        return f"Classes: 0 to {len(classes) - 1}, the numbers of the labels."
    words = [f"{label} {name}" for label, name in enumerate(classes)]
    if len(words) > _ON_A_LINE:
        words = [*words[:_ENDS], f"... ({len(classes)} in all)", *words[-_ENDS:]]
    return f"Classes: {', '.join(words)}."


def _listed(classes: Sequence[str]) -> str:
    return ", ".join(classes) if len(classes) <= _ON_A_LINE else ", ".join([*classes[:_ENDS], "...", *classes[-_ENDS:]])
