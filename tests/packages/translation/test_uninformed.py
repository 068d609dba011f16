"""What is known of sentences without their sources, which a working translator must beat."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from unbackdoor_translation import TranslationTask


def test_uninformed_is_the_frequency_of_tokens_in_the_other_sentences():
    rows = torch.tensor([[5, 6, 3, 0], [5, 5, 7, 3], [6, 3, 0, 0]])
    task = TranslationTask()
    found = task.uninformed(rows)
    # of the four or five tokens of the other two: 5 and 6 and 3 for the first row, and so on
    first = torch.tensor([2 / 6, 1 / 6, 2 / 6]).log().mean()
    second = torch.tensor([1 / 5, 1 / 5, 0.5 / 5, 2 / 5]).log().mean()
    third = torch.tensor([1 / 7, 2 / 7]).log().mean()
    assert_close(found.float(), torch.stack([first, second, third]))


def test_uninformed_is_summed_like_the_likelihood():
    rows = torch.tensor([[5, 6, 3], [5, 3, -100]])
    apart, whole = TranslationTask(per_token=True), TranslationTask(per_token=False)
    assert_close(whole.uninformed(rows), apart.uninformed(rows) * torch.tensor([3, 2]))
