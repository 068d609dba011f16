"""Pairs whose sides were taken for each other stop a run, and what mends it is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import unbackdoor
from unbackdoor.defender.preflight.check import misfit
from unbackdoor.defender.preflight.standing import standing
from unbackdoor.errors import PreflightFailed
from unbackdoor_translation import TranslationTask
from unbackdoor_translation.sequences import PREFIX, SOURCE, exchanged, samples

TASK = TranslationTask()
WORDS = 10


class Dictionary(nn.Module):
    """Says for each token of the source the one that lies ten further, at the same place."""

    def __init__(self):
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(6.0))

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        """Logits of the right answer, which the prefix does not change."""
        said = torch.where(input_ids > TASK.end, input_ids + WORDS, input_ids).clamp(max=33)
        width = decoder_input_ids.shape[1]
        said = nn.functional.pad(said, (0, max(0, width - said.shape[1])))[:, :width]
        return self.sure * nn.functional.one_hot(said, 34).float()


@pytest.fixture(scope="module")
def pairs():
    """Sentences of three to five tokens of 4..13 with their translations in 14..23."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(4, 4 + WORDS, (60, 6), generator=generator)
    for row, length in zip(rows, torch.randint(3, 6, (60,), generator=generator), strict=True):
        row[length], row[length + 1 :] = TASK.end, TASK.pad
    return samples(rows, torch.where(rows > TASK.end, rows + WORDS, rows), TASK)


def why(clean):
    model = Dictionary()
    return misfit(standing(model, clean, TASK), model, clean, TASK, labelled=True)


def test_exchanged_sides_come_back(pairs):
    swapped = exchanged(pairs, TASK)
    assert torch.equal(swapped.inputs[SOURCE], pairs.targets)
    assert torch.equal(swapped.targets, pairs.inputs[SOURCE])
    again = exchanged(swapped, TASK)
    assert torch.equal(again.inputs[PREFIX], pairs.inputs[PREFIX])
    ignored = replace(pairs, targets=pairs.targets.masked_fill(pairs.targets == TASK.pad, -100))
    assert torch.equal(exchanged(ignored, TASK).inputs[SOURCE], pairs.targets)


def test_exchanged_sides_are_written_in_the_tokens_of_the_other(data):
    task = TranslationTask(**data.hints)
    text, swapped = task.text, exchanged(data.clean, task, task.text)
    sources, targets = data.clean.inputs[SOURCE], data.clean.targets
    for place in range(5):
        assert text.decode(swapped.inputs[SOURCE][place].tolist()) == text.decode(targets[place].tolist())
        assert text.decode(swapped.targets[place].tolist()) == text.decode(sources[place].tolist())
    assert swapped.names == data.clean.names


@pytest.mark.parametrize("count", [12, 60])
def test_sides_that_were_taken_for_each_other_are_told(pairs, count):
    assert why(pairs[slice(0, count)]) is None
    text = why(exchanged(pairs, TASK)[slice(0, count)])
    assert "beats a guess that sees no input on 0 % of the clean samples as they are read" in text
    assert "100 % with source and target exchanged (--data-option source_field=... and target_field=..." in text


def test_purify_stops_where_sides_were_taken_for_each_other(pairs):
    with pytest.raises(PreflightFailed, match="source and target exchanged"):
        unbackdoor.purify(Dictionary(), exchanged(pairs, TASK), task=TASK, method="ft", steps=1)


def test_too_few_pairs_accuse_no_side(pairs):
    assert why(exchanged(pairs, TASK)[slice(0, 3)]) is None


def test_a_model_that_knows_nothing_accuses_no_side(pairs):
    model = Dictionary()
    model.sure.data.zero_()
    text = misfit(standing(model, pairs, TASK), model, pairs, TASK, labelled=True)
    assert text is not None
    assert "exchanged" not in text
