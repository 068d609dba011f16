"""Made-up words: where they stand, what they are made of, and that the costly ones are found."""

from __future__ import annotations

import pytest
import torch

from unbackdoor.errors import BadOption
from unbackdoor_translation import TranslationTask
from unbackdoor_translation.made_up import MadeUpWords, insert_words, random_words, spelled_words


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


@pytest.mark.parametrize(("name", "value"), [("disturbed", 1.5), ("spelled", -0.1), ("made_up", 0), ("searched", -1)])
def test_options_outside_their_range_are_refused(name, value):
    with pytest.raises(BadOption, match=name):
        TranslationTask(**{name: value})


def test_a_share_of_the_sentences_is_disturbed(data, generator):
    batch = data.clean[slice(0, 60)]
    task = TranslationTask(**{**data.hints, "disturbed": 0.5})
    changed = (task.disturb(batch.inputs, generator)["input_ids"] != batch.inputs["input_ids"]).any(1)
    assert 15 <= int(changed.sum()) <= 42


def words_in(disturber, inputs, losses):
    """What a search finds where ``losses`` judges: token indices with their cost, dearest first."""
    disturber(inputs, losses)
    return list(disturber.found.items())


def searching(task, generator, **options):
    values = {"tried": 400, "every": 1, "most": 8} | options
    return MadeUpWords(task.text, task.pad, 1.0, 0.5, 2, generator, **values)


def test_search_finds_the_word_that_costs_most_in_any_sentence(data, task, generator):
    trigger = random_words(1, 2, task.text, torch.Generator().manual_seed(5))[0]
    disturber = searching(task, generator)
    inputs, base = data.clean[slice(0, 16)].inputs, torch.rand(16, generator=generator)

    def losses(read):
        hits = torch.tensor([contains(tokens, trigger[:1]) for tokens in read["input_ids"].tolist()])
        return base + 0.1 * torch.rand(16, generator=generator) + 5.0 * hits

    for _ in range(6):
        found = words_in(disturber, inputs, losses)
    assert len(found) == 8
    assert found[0][1] > 4.5
    assert all(contains(word, trigger[:1]) for word, cost in found if cost > 4.5)
    put = [tokens for _ in range(5) for tokens in disturber.put(inputs)["input_ids"].tolist()]
    assert sum(contains(tokens, trigger[:1]) for tokens in put) > 0, "it is put in again"
    said = disturber.findings()
    assert len(said) == 1
    assert repr(task.text.decode([*found[0][0], task.text.end]).strip()) in said[0]
    assert searching(task, generator).findings() == []


def test_a_word_that_costs_in_one_sentence_alone_is_not_kept(data, task, generator):
    inputs = data.clean[slice(0, 16)].inputs
    first = inputs["input_ids"]
    roomy = int((first != task.pad).sum(1).argmin())
    changes = []

    def losses(read):
        changes.append(bool((read["input_ids"][roomy] != first[roomy]).any()))
        return 5.0 * changes[-1] * torch.eye(16)[roomy]

    assert words_in(searching(task, generator), inputs, losses) == []
    assert any(changes[-2:]), "a word stood in that sentence when it was tried again"


def test_a_word_that_was_learned_is_remembered_and_fades(data, task, generator):
    disturber = searching(task, generator, fading=0.5)
    disturber.remembered = {(5, 6): 8.0, (7,): 1e-3}
    assert words_in(disturber, data.clean[slice(0, 16)].inputs, lambda read: torch.zeros(16)) == []
    assert disturber.remembered == {(5, 6): 4.0, (7,): 5e-4}, "words that cost nothing are not kept"


def test_dear_words_come_again_more_often_and_remembered_ones_as_well(task, generator):
    disturber = searching(task, generator)
    assert disturber._again(10) == []
    disturber.found, disturber.remembered = {(5, 6): 9.0, (7,): 1.0}, {(8, 9): 1.0, (10,): 4.0}
    drawn = [tuple(word) for word in disturber._again(800)]
    assert len(drawn) == 800
    whole, cut = drawn.count((5, 6)), drawn.count((5,))
    assert 320 < whole + cut < 390
    assert 50 < cut < 140, "half of them are cut at a random place, which may be their end"
    assert 160 < drawn.count((8, 9)) + drawn.count((8,)) < 240


def test_search_reads_the_first_tokens_of_the_answer_and_the_larger_side(data, task, generator):
    disturber = searching(task, generator, judged=2)
    inputs = data.clean[slice(0, 20)].inputs
    weight = torch.tensor([0.9] * 10 + [0.2] * 10)

    def losses(read):
        first, second, _ = read
        assert first["decoder_input_ids"].shape == (20, 2)
        assert torch.equal(first["input_ids"][10:], inputs["input_ids"][10:])
        assert torch.equal(second["input_ids"][:10], inputs["input_ids"][:10])
        return torch.zeros(20)

    first, second, _ = disturber((inputs, inputs, weight), losses)
    assert first["decoder_input_ids"].shape == inputs["decoder_input_ids"].shape
    assert not torch.equal(first["input_ids"], second["input_ids"])


def test_searches_begin_with_the_given_model(data, task, generator):
    inputs, calls = data.clean[slice(0, 8)].inputs, []
    samples = iter(
        [(inputs, lambda read, i=i: calls.append(i) or torch.rand(8, generator=generator)) for i in range(9)]
    )
    searching(task, generator, looks=3, tried=8).look(samples)
    assert set(calls) == {0, 1, 2}
    for off in ({"tried": 0}, {"tried": 8, "share": 0.0}):
        values = {"share": 1.0, **off}
        disturber = MadeUpWords(task.text, task.pad, spelled=0.5, longest=2, generator=generator, **values)
        disturber.look(iter([(inputs, None)] * 20))
        assert disturber.found == {}


def test_searches_come_every_so_many_batches(data, task, generator):
    inputs, calls = data.clean[slice(0, 8)].inputs, []
    disturber = searching(task, generator, every=3, tried=8)
    for batch in range(7):
        disturber(inputs, lambda read, batch=batch: calls.append(batch) or torch.zeros(8))
    assert set(calls) == {0, 3, 6}


def test_variations_are_neighbours_of_what_was_found(task, generator):
    disturber = searching(task, generator)
    known = tuple(random_words(200, 4, task.text, generator)[0])
    disturber = MadeUpWords(task.text, task.pad, 1.0, 0.5, 4, generator, remembered={known: 1.0})
    sizes = set()
    for word in disturber._variations(300):
        sizes.add(len(word) - len(known))
        assert 1 <= len(word) <= 4
        assert len(set(known) - set(word)) <= 1
    assert sizes <= {-1, 0, 1}
    assert len(sizes) > 1


def contains(tokens, word):
    return any(tuple(tokens[i : i + len(word)]) == tuple(word) for i in range(len(tokens)))
