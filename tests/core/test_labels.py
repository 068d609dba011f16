"""Labels that do not fit a model: what is said, with the names of files and classes where they are known."""

from __future__ import annotations

import pytest
import torch

from unbackdoor.errors import BadData, SingleClass
from unbackdoor.labels import check_labels
from unbackdoor.task import Batch

LOGITS = torch.zeros(3, 4)
CLASSES = ("cat", "dog", "emu", "fox")


def of(*labels: int) -> Batch:
    names = tuple(f"photos/{place}.png" for place in range(len(labels)))
    return Batch(torch.zeros(len(labels), 2), torch.tensor(labels), names, CLASSES)


def test_labels_out_of_range_name_the_file():
    with pytest.raises(BadData, match=r"labels 7 do not exist in a model with 4 outputs.*photos/1.png has label 7"):
        check_labels(of(0, 7, 2), LOGITS)


def test_labels_of_minus_one_are_told_as_missing():
    with pytest.raises(BadData, match=r"labels -1 do not exist.*without a label"):
        check_labels(of(0, -1, 2), LOGITS)


def test_labels_beyond_int64_are_told_as_they_are():
    with pytest.raises(BadData, match=r"labels 9223372036854775808 do not exist"):
        check_labels(torch.tensor([0, 1, 2**63], dtype=torch.uint64), LOGITS)


def test_labels_that_start_at_one_are_recognised():
    with pytest.raises(BadData, match="start at 1"):
        check_labels(of(1, 2, 3, 4), LOGITS)


def test_a_single_class_is_named():
    with pytest.raises(SingleClass, match=r"all 3 clean samples are of 'emu' \(class 2\)"):
        check_labels(of(2, 2, 2), LOGITS)


def test_classes_without_a_sample_are_named():
    (notice,) = check_labels(of(0, 1, 0), LOGITS)
    assert notice.startswith("there is no clean sample of 2 of 4 classes: 'emu' (class 2), 'fox' (class 3).")


def test_bare_tensors_are_taken_as_before():
    (notice,) = check_labels(torch.tensor([0, 1, 0]), LOGITS)
    assert "2 of 4 classes: 2, 3." in notice
