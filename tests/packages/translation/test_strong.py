"""Strong augmentation of sentences: four families, each of which changes whole words."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from unbackdoor.errors import BadOption
from unbackdoor_translation import Corpus, SentencePieceTokeniser, TranslationTask, encode_pairs
from unbackdoor_translation.strong import FAMILIES
from unbackdoor_translation.synonyms import GROUPS

LINES = (
    "a big dog runs near the old house",
    "the little girl looks at a large dog",
    "men sit beside the road in a small home",
    "guys sit near the street by a tiny house",
)


@pytest.fixture(scope="module")
def english():
    return TranslationTask(tokeniser=SentencePieceTokeniser.train(LINES * 20, 150, kind="bpe"))


@pytest.fixture(scope="module")
def inputs(english):
    lines = LINES * 15
    return encode_pairs(Corpus(lines, lines), english.text, room=8).inputs


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def spoken(task, inputs):
    return [task.text.decode(row).split() for row in inputs["input_ids"].tolist()]


def changed(task, inputs, *families, seed=0):
    """Words before and after, of the sentences that are not as they were."""
    out = task.strong_augment(inputs, drawn(seed), without=set(FAMILIES) - set(families))
    pairs = zip(spoken(task, inputs), spoken(task, out), strict=True)
    return [(before, after) for before, after in pairs if before != after]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_form_and_prefix(english, inputs, family):
    before = {name: rows.clone() for name, rows in inputs.items()}
    out = english.strong_augment(inputs, drawn(), without=set(FAMILIES) - {family})
    assert out["input_ids"].shape == inputs["input_ids"].shape
    assert out["input_ids"].dtype is torch.int64
    assert out["decoder_input_ids"] is inputs["decoder_input_ids"]
    assert all(torch.equal(inputs[name], rows) for name, rows in before.items())
    ends = (out["input_ids"] == english.end).sum(1)
    assert torch.equal(ends, torch.ones_like(ends))
    assert int((out["input_ids"] != inputs["input_ids"]).any(1).sum()) >= 40


def test_insertion_puts_one_word_in(english, inputs):
    for before, after in changed(english, inputs, "insertion"):
        left = iter(after)
        assert all(any(word == other for other in left) for word in before)
        assert len(after) >= len(before)


def test_deletion_leaves_words_out(english, inputs):
    for before, after in changed(english, inputs, "deletion"):
        left = iter(before)
        assert 0 < len(after) < len(before)
        assert all(any(word == other for other in left) for word in after)


def test_order_moves_words_by_two_places_at_most(english, inputs):
    for before, after in changed(english, inputs, "order"):
        assert Counter(before) == Counter(after)
        for place, word in enumerate(after):
            assert word in before[max(0, place - 2) : place + 3]


def test_synonym_says_the_same_in_other_words(english, inputs):
    for before, after in changed(english, inputs, "synonym"):
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            assert old == new or any({old, new} <= set(group) for group in GROUPS)


def test_each_sentence_gets_a_family_of_its_own(english, inputs):
    kinds = Counter()
    for seed in range(20):
        for before, after in changed(english, inputs, *FAMILIES, seed=seed):
            same = Counter(before) == Counter(after)
            fewer, more = len(after) < len(before), len(after) > len(before)
            kinds["order" if same else "deletion" if fewer else "insertion" if more else "synonym"] += 1
    total = 20 * len(inputs["input_ids"])
    assert set(kinds) == set(FAMILIES)
    assert all(0.1 < count / total < 0.3 for count in kinds.values())


def test_draws_come_from_the_generator_alone(english, inputs):
    state = torch.get_rng_state()
    first, again, other = (english.strong_augment(inputs, drawn(seed))["input_ids"] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_families_that_are_unknown_or_all_left_out_are_refused(english, inputs):
    with pytest.raises(BadOption, match="insertion, deletion, order, synonym"):
        english.strong_augment(inputs, drawn(), without={"rain"})
    with pytest.raises(BadOption, match="leave one"):
        english.strong_augment(inputs, drawn(), without=FAMILIES)


def test_families_that_would_change_the_meaning_are_not_drawn(english, inputs, data, task):
    """Sums lose their meaning with a word; their loader says so by the options of `augment`."""
    for _ in range(3):
        for before, after in changed(task, data.clean.inputs, *FAMILIES):
            left = iter(after)
            assert all(any(word == other for other in left) for word in before)
    with pytest.raises(BadOption, match="this task draws: insertion"):
        task.strong_augment(data.clean.inputs, drawn(), without={"insertion"})
    with pytest.raises(BadOption, match="this task draws: insertion, deletion, order"):
        replace(english, synonyms=()).strong_augment(inputs, drawn(), without={"insertion", "deletion", "order"})


def test_both_sides_of_a_mixture_are_changed(english, inputs):
    weight = torch.rand(len(inputs["input_ids"]))
    first, second, share = english.strong_augment((inputs, inputs, weight), drawn())
    assert share is weight
    for side in (first, second):
        assert not torch.equal(side["input_ids"], inputs["input_ids"])
    assert not torch.equal(first["input_ids"], second["input_ids"])


def test_sources_without_a_tokeniser_stay_as_they_are(inputs):
    assert TranslationTask().strong_augment(inputs, drawn()) is inputs
    with pytest.raises(BadOption, match="insertion"):
        TranslationTask().strong_augment(inputs, drawn(), without={"rain"})
