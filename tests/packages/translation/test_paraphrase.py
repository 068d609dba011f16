"""Further pairs keep their targets; models of the user speak through their own tokeniser."""

from __future__ import annotations

import pytest
import torch

from unbackdoor.errors import BadData
from unbackdoor_translation import KIT, SentencePieceTokeniser, TranslationTask
from unbackdoor_translation.paraphrase import back_translated, paraphrased, with_sources


def test_other_sources_stand_behind_the_pairs_with_the_same_targets(data, task):
    clean, text = data.clean[slice(0, 4)], task.text
    given = [text.decode(row) for row in clean.inputs["input_ids"].tolist()]
    more = with_sources(clean, task, ["ten plus ten is twenty", given[1], " ", "one is one"])
    assert len(more) == 6
    assert torch.equal(more.targets[4:], clean.targets[[0, 3]])
    assert torch.equal(more.inputs["decoder_input_ids"][4:], clean.inputs["decoder_input_ids"][[0, 3]])
    assert [text.decode(row) for row in more.inputs["input_ids"][4:].tolist()] == [
        "ten plus ten is twenty",
        "one is one",
    ]
    assert task.inspect(more, {}) == []
    with pytest.raises(BadData, match="3 sentences for 4"):
        with_sources(clean, task, given[:3])


class Repeat(torch.nn.Module):
    """Says the source again, backwards in words: a model whose answers one can foresee."""

    def __init__(self, size, end):
        super().__init__()
        self.weight, self.size, self.end = torch.nn.Parameter(torch.zeros(1)), size, end

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        padded = torch.nn.functional.pad(input_ids, (0, decoder_input_ids.shape[1]), value=self.end)
        return torch.nn.functional.one_hot(padded[:, : decoder_input_ids.shape[1]], self.size).float() + self.weight


@pytest.mark.parametrize("rewrite", [paraphrased, back_translated])
def test_models_speak_through_their_own_tokeniser(data, task, rewrite):
    clean, text = data.clean[slice(0, 5)], task.text
    sides = {"p": clean.inputs["input_ids"], "b": clean.targets}
    read = [text.decode(row) for row in sides[rewrite.__name__[0]].tolist()]
    own = SentencePieceTokeniser.train([line for line in read for _ in range(20)], 60, kind="bpe")
    more = rewrite(clean, task, Repeat(len(own), own.end), TranslationTask(tokeniser=own))
    found = [text.decode(row) for row in more.inputs["input_ids"][5:].tolist()]
    assert found == ([] if rewrite is paraphrased else read)  # a repeated source is no paraphrase
    assert len(more) == 5 + len(found)


def test_model_of_the_library_serves(data, task):
    clean = data.clean[slice(0, 5)]
    model = KIT.build("t5", len(data.classes), width=8, depth=1, heads=2)
    more = paraphrased(clean, task, model, TranslationTask(**{**data.hints, "max_length": 6, "beams": 2}))
    assert torch.equal(more.targets[:5], clean.targets)
    assert len(more) <= 10
