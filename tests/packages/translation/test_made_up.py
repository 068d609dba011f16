"""Made-up words: where they stand and what they are made of."""

from __future__ import annotations

import pytest
import torch

from unbackdoor.errors import BadOption
from unbackdoor_translation import TranslationTask
from unbackdoor_translation.made_up import insert_words, made_up_words, random_words, spelled_words


def inserted(task, tokens, words, generator):
    text = task.text
    return insert_words(tokens, words, text.begins, text.special, text.pad, generator)


def row(tokens, pad):
    return [index for index in tokens.tolist() if index != pad]


def test_each_sentence_gets_its_word_between_whole_words(data, task, generator):
    text, tokens = task.text, data.test.inputs["input_ids"]
    words = random_words(len(tokens), 4, text, generator)
    changed, done = inserted(task, tokens, words, generator)
    assert changed.shape == tokens.shape
    assert float(done.float().mean()) > 0.7
    gaps = set()
    for before, after, word, kept in zip(tokens, changed, words, done.tolist(), strict=True):
        old, new = row(before, text.pad), row(after, text.pad)
        if not kept:
            assert old == new
            continue
        places = [i for i in range(len(old)) if old[:i] + word + old[i:] == new]
        assert places, (text.decode(old), text.decode(new))
        spoken, longer = text.decode(old).split(), text.decode(new).split()
        assert len(longer) >= len(spoken)
        left = iter(longer)
        assert all(any(one == other for other in left) for one in spoken), "no word of the sentence is torn"
        gaps.add((len(spoken), places[0]))
    assert len({place for length, place in gaps if length == 3}) > 1 or len(gaps) > 4, "at more than one place"


def test_rows_without_room_and_real_words_stay_out(data, task, generator):
    text, tokens = task.text, data.test.inputs["input_ids"]
    narrow = tokens[:, : int((tokens != text.pad).sum(1).max())]
    longest = int((narrow != text.pad).sum(1).argmax())
    changed, done = inserted(task, narrow, random_words(len(narrow), 4, text, generator), generator)
    assert not done[longest]
    assert torch.equal(changed[longest], narrow[longest])
    common = [next(index for index in row(tokens[0], text.pad) if text.begins[index])]
    changed, done = inserted(task, tokens, [common] * len(tokens), generator)
    assert not done.any()
    assert torch.equal(changed, tokens)
    assert not inserted(task, tokens, [[]] * len(tokens), generator)[1].any()


def test_random_words_reach_every_token_of_the_vocabulary(task, generator):
    text, met = task.text, torch.zeros(len(task.text), dtype=torch.bool)
    for word in random_words(8000, 4, text, generator):
        assert 1 <= len(word) <= 4
        assert text.begins[word[0]]
        assert not text.begins[word[1:]].any()
        met[word] = True
    assert torch.equal(met, ~text.special)


def test_spelled_words_are_letters_as_the_tokeniser_cuts_them(task, generator):
    text = task.text
    words = spelled_words(3000, 2, text, generator)
    assert text.word("cf") in words, "any word of two letters comes up"
    assert {len(text.decode([*word, text.end]).strip()) for word in words if text.unknown not in word} == {1, 2}
    again = spelled_words(50, 5, text, torch.Generator().manual_seed(1))
    assert again == spelled_words(50, 5, text, torch.Generator().manual_seed(1))
    known = [word for word in again if text.unknown not in word]
    assert max(len(text.decode([*word, text.end]).strip()) for word in known) == 5


def test_letters_are_those_of_the_vocabulary_and_the_alphabet(task):
    assert {"a", "z", "ö"} <= set(task.text.letters)
    assert not any(letter.isupper() or not letter.isalpha() for letter in task.text.letters)


@pytest.mark.parametrize(("name", "value"), [("spelled", 1.5), ("spelled", -0.1), ("made_up", 0)])
def test_options_outside_their_range_are_refused(name, value):
    with pytest.raises(BadOption, match=name):
        TranslationTask(**{name: value})


def test_made_up_words_are_letters_and_tokens_in_random_order(task, generator):
    text, seeded = task.text, torch.Generator().manual_seed
    assert made_up_words(9, 4, text, seeded(1), spelled=0.5) == made_up_words(9, 4, text, seeded(1), spelled=0.5)
    assert all(text.begins[word[0]] for word in made_up_words(50, 4, text, generator, spelled=0.0))
    shown = [text.decode([*word, text.end]).strip() for word in made_up_words(400, 2, text, generator, spelled=0.5)]
    for part in (shown[:200], shown[200:]):
        assert 0.1 < sum(len(word) > 2 for word in part) / 200 < 0.6, "of either kind in either half"
