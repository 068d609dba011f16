"""Targets that ask for another model's answers, against a loop over samples and classes."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from unbackdoor_image import ImageTask

FIRST, SECOND = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 2, 3])
SHARE = torch.tensor([0.75, 0.5, 0.25, 1.0], dtype=torch.float64)
LOGITS = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def shares():
    found = torch.zeros(4, 4, dtype=torch.float64)
    for n in range(4):
        found[n, FIRST[n]] += SHARE[n]
        found[n, SECOND[n]] += 1 - SHARE[n]
    return found


def test_imitate_keeps_the_labels_share_of_kept_classes_and_divides_the_rest():
    kept = torch.tensor([True, False, False, True])
    likely, expected = LOGITS.softmax(1), shares()
    for n in range(4):
        rest = 1 - float(expected[n, 0] + expected[n, 3])
        for k in (1, 2):
            expected[n, k] = rest * likely[n, k] / (likely[n, 1] + likely[n, 2])
    found = ImageTask().imitate(LOGITS, (FIRST, SECOND, SHARE), kept)
    assert_close(found, expected, rtol=0, atol=1e-12)
    assert_close(found.sum(1), torch.ones(4, dtype=torch.float64))
