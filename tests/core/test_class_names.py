"""Names and numbers of classes, where no folder is involved."""

from __future__ import annotations

import pytest
import torch

from unbackdoor.errors import BadData, BadOption, TooLarge
from unbackdoor.files.class_names import given_classes, listed, names_of, place_names
from unbackdoor.files.reading import limited


def test_numbers_name_classes_up_to_the_highest() -> None:
    assert names_of(torch.tensor([0, 2]), None, "x.npz") == ("0", "1", "2")
    assert names_of(torch.tensor([0, 1]), ("a", "b", "c"), "x.npz") == ("a", "b", "c")


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([], BadData, "no sample"),
        ([-1, 0], BadData, "label -1"),
        ([0, 3], BadData, "label 3, but 3 classes"),
    ],
)
def test_labels_without_a_name_are_refused(labels: list[int], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        names_of(torch.tensor(labels, dtype=torch.int64), ("a", "b", "c"), "x.npz")


def test_a_huge_label_takes_no_memory() -> None:
    with pytest.raises(TooLarge, match="4,294,967,295"):
        names_of(torch.tensor([0, 4294967295]), None, "x.npz")
    with limited(classes=5_000_000_000), pytest.raises(BadData):
        names_of(torch.tensor([0, 4294967295]), ("a",), "x.npz")
    with limited(classes=2), pytest.raises(TooLarge):
        given_classes(["a", "b", "c"])


def test_names_are_placed_by_the_given_classes() -> None:
    assert place_names({"b", "a"}, None, None, "x") == ({"a": 0, "b": 1}, ("a", "b"))
    assert place_names({"b"}, ("c", "b"), None, "x") == ({"b": 1}, ("c", "b"))
    with pytest.raises(BadOption, match="order"):
        place_names({"b"}, None, "size", "x")


def test_lists_in_messages_are_short_and_on_one_line() -> None:
    assert listed(["a", "b\n"]) == "a, b\\n"
    assert listed(list(range(100))).endswith("and 92 more")
