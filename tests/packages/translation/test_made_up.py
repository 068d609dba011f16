"""Made-up words: where they stand, what they are made of, and that those of high loss come back."""

from __future__ import annotations

import pytest
import torch

from unbackdoor.errors import BadOption
from unbackdoor_translation import TranslationTask
from unbackdoor_translation.made_up import MadeUpWords, Replay, insert_words, random_words, spelled_words


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


def test_disturbance_is_off_without_tokeniser_or_share(data, generator):
    batch = data.clean[slice(0, 8)]
    for task in (TranslationTask(), TranslationTask(**{**data.hints, "disturbed": 0.0})):
        assert task.disturb(batch.inputs, generator) is batch.inputs
    task = TranslationTask(**{**data.hints, "disturbed": 1.0})
    first, second, share = task.disturb((batch.inputs, batch.inputs, torch.ones(8)), generator)
    assert not torch.equal(first["input_ids"], second["input_ids"])
    assert torch.equal(first["decoder_input_ids"], batch.inputs["decoder_input_ids"])
    assert torch.equal(share, torch.ones(8))


@pytest.mark.parametrize(("name", "value"), [("disturbed", 1.5), ("spelled", -0.1), ("made_up", 0)])
def test_options_outside_their_range_are_refused(name, value):
    with pytest.raises(BadOption, match=name):
        TranslationTask(**{name: value})


def test_a_share_of_the_sentences_is_disturbed(data, generator):
    batch = data.clean[slice(0, 60)]
    task = TranslationTask(**{**data.hints, "disturbed": 0.5})
    changed = (task.disturb(batch.inputs, generator)["input_ids"] != batch.inputs["input_ids"]).any(1)
    assert 15 <= int(changed.sum()) <= 42


def test_replay_keeps_the_words_of_highest_loss():
    replay = Replay(most=2)
    assert replay.draw(3, torch.Generator()) == []
    replay.note([[5], [6, 7], [8]], [1.0, 9.0, 3.0])
    assert replay.words == {(6, 7): 9.0, (8,): 3.0}
    replay.note([[6, 7]], [1.0])
    assert replay.words[(6, 7)] == 5.0
    drawn = replay.draw(40, torch.Generator().manual_seed(0))
    assert len(drawn) == 40
    assert {tuple(word) for word in drawn} == {(6, 7), (8,)}


def test_a_word_that_the_model_takes_badly_comes_back(data, task, generator):
    disturber = MadeUpWords(task.text, task.pad, 1.0, 1.0, 1, generator, replay=Replay(most=4))
    trigger = tuple(task.text.word("q"))
    batch, share = data.clean[slice(0, 64)], []
    for _ in range(60):
        changed = disturber(batch.inputs)["input_ids"]
        hit = torch.tensor([contains(one, trigger) for one in changed.tolist()])
        disturber.learn(lambda hit=hit: torch.where(hit, 9.0, torch.rand(len(hit), generator=generator)))
        share.append(float(hit.float().mean()))
    assert trigger in disturber.replay.words
    assert sum(share[-20:]) / 20 > 2 * share[0]


def test_losses_of_mixtures_speak_of_the_word_of_the_larger_side(data, task, generator):
    disturber = MadeUpWords(task.text, task.pad, 1.0, 0.0, 4, generator)
    inputs = data.clean[slice(0, 20)].inputs
    weight = torch.tensor([0.9] * 10 + [0.2] * 10)
    first, second, _ = disturber((inputs, inputs, weight))
    disturber.learn(lambda: torch.arange(20.0))
    disturber(inputs)
    for word, loss in disturber.replay.words.items():
        side = first if loss < 10 else second
        assert contains(side["input_ids"][int(loss)].tolist(), word)


def contains(tokens, word):
    return any(tuple(tokens[i : i + len(word)]) == tuple(word) for i in range(len(tokens)))
