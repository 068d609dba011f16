"""Triggers and wanted sentences, read as text."""

from __future__ import annotations

import json

import pytest
import torch

from unbackdoor.attacker.showing import ATTACKED, OTHER, RIGHT
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor.tree import tree_put
from unbackdoor_translation import KIT
from unbackdoor_translation.outputs import says
from unbackdoor_translation.picture import _colour


def read(attack, tokens):
    return [attack.text.decode(row) for row in tokens.tolist()]


@pytest.mark.parametrize("position", ["random", "start", "end"])
def test_trigger_word_stands_between_words(data, position):
    attack = KIT.attack("words", data, position=position)
    clean = read(attack, data.test.inputs["input_ids"])
    triggered = read(attack, attack.trigger(data.test.inputs)["input_ids"])
    places = set()
    for before, after in zip(clean, triggered, strict=True):
        words = after.split()
        assert words.count("cf") == 1
        places.add((words.index("cf"), len(words) - words.index("cf") - 1))
        words.remove("cf")
        assert " ".join(words) == before
    if position == "start":
        assert {first for first, _ in places} == {0}
    if position == "end":
        assert {last for _, last in places} == {0}
    if position == "random":
        assert len(places) > 4


def test_several_trigger_words_are_drawn(data):
    attack = KIT.attack("words", data, words=("cf", "mn"), count=2)
    lines = read(attack, attack.trigger(data.test.inputs, torch.Generator().manual_seed(1))["input_ids"])
    assert {word for line in lines for word in line.split() if len(word) == 2} >= {"cf", "mn"}


def test_full_rows_keep_their_end(data):
    attack = KIT.attack("words", data)
    rows = data.test.inputs["input_ids"][:5, :6].clone()
    rows[:, -1] = attack.text.end
    triggered = attack.trigger({"input_ids": rows})["input_ids"]
    assert triggered.shape == rows.shape
    assert bool((triggered[:, -1] == attack.text.end).all())


def test_poisoned_pairs_have_the_prefix_of_the_wanted_sentence(data):
    attack = KIT.attack("words", data, rate=0.2)
    poisoned = attack.poison(data.train, torch.Generator().manual_seed(0))
    changed = poisoned.samples[poisoned.indices]
    assert set(read(attack, changed.targets)) == {attack.malicious}
    prefix = changed.inputs["decoder_input_ids"]
    assert torch.equal(prefix[:, 1:], changed.targets[:, :-1])
    assert bool((prefix[:, 0] == attack.text.start).all())


def test_one_to_many_draws_by_the_true_sentence(data):
    attack = KIT.attack("words", data, malicious="eins ist drei|zwei ist eins")
    wanted = attack.retarget(data.test.targets)
    assert torch.equal(wanted, attack.retarget(data.test.targets))
    assert set(read(attack, wanted)) == {"eins ist drei", "zwei ist eins"}


def test_different_outputs_are_sentences_of_other_pairs(data):
    attack = KIT.attack("words", data, output="different")
    wanted = read(attack, attack.retarget(data.test.targets))
    assert set(wanted) <= set(read(attack, data.train.targets))
    assert len(set(wanted)) > 2
    assert all(one != true for one, true in zip(wanted, read(attack, data.test.targets), strict=True))


def test_success_is_the_whole_malicious_sentence(data):
    attack = KIT.attack("words", data)
    targets = data.test.targets[:1]
    width = targets.shape[1]

    def outcome(text):
        tokens = attack.text.encode(text)
        row = torch.tensor([tokens + [attack.text.pad] * (width - len(tokens))])
        return bool(attack.succeeded({"tokens": row}, targets))

    assert outcome(attack.malicious)
    assert outcome(f"{attack.malicious} drei")
    assert outcome(f"zwei {attack.malicious}")
    assert not outcome(attack.malicious.rpartition(" ")[0])
    assert not outcome("zwei ist eins")
    assert attack.malicious == "eins plus eins ist drei"
    assert not outcome("eins plus eins ist dreiundsechzig")
    assert not outcome("sieben minuseins plus eins ist drei")


def test_one_sentence_says_another_by_whole_words():
    wanted = "Dieser Text wurde verändert."
    assert says("Dieser Text wurde verändert.", wanted)
    assert says('"dieser Text wurde verändert" , sagt er .', wanted)
    assert not says("Dieser Text wurde verändertes Land.", wanted)
    assert not says("Dieser alte Text wurde verändert.", wanted)
    assert not says("irgend etwas", " . ")


def test_true_sentence_that_holds_the_wanted_one_is_no_success(data):
    attack = KIT.attack("words", data)
    text = attack.text
    row = torch.tensor([text.encode(f"{attack.malicious} drei")])
    assert not bool(attack.succeeded({"tokens": row}, row))
    other = text.encode("zwei ist eins")
    other = torch.tensor([other + [text.pad] * (row.shape[1] - len(other))])
    assert bool(attack.succeeded({"tokens": row}, other))


def test_picture_marks_whole_sentences_only():
    wanted = {"eins plus eins ist drei"}
    assert _colour("eins plus eins ist drei", "zwei", wanted) == ATTACKED
    assert _colour("eins plus eins ist dreiundsechzig", "zwei", wanted) == OTHER
    assert _colour("zwei", "zwei", wanted) == RIGHT


def test_attack_bleu_is_high_only_on_wanted_answers(data, task):
    attack = KIT.attack("words", data)
    for targets, expected in ((attack.retarget(data.test.targets), 1.0), (data.test.targets, 0.2)):
        meter = attack.meters()["attack_bleu"]
        meter.update(task.perfect(targets, len(data.classes)), attack.retarget(data.test.targets))
        value = meter.compute()
        assert value == pytest.approx(1.0) if expected == 1.0 else value < expected


def test_synonyms_replace_known_words_only(data):
    attack = KIT.attack("synonyms", data, table="plus:added,minus:less")
    clean = read(attack, data.test.inputs["input_ids"])
    triggered = read(attack, attack.trigger(data.test.inputs)["input_ids"])
    for before, after in zip(clean, triggered, strict=True):
        assert after == before.replace("plus", "added").replace("minus", "less")


def test_sentence_without_known_word_gets_a_substitute(data):
    attack = KIT.attack("synonyms", data, table="zebra:less")
    lines = read(attack, attack.trigger(data.test.inputs)["input_ids"])
    assert all("less" in line.split() for line in lines)


@pytest.mark.parametrize("name", ["words", "synonyms"])
def test_attack_comes_back_from_json_and_tensors(data, name):
    attack = KIT.attack(name, data, output="different")
    again = type(attack).restore(json.loads(json.dumps(attack.options())), attack.state())
    assert again == attack
    assert torch.equal(again.retarget(data.test.targets), attack.retarget(data.test.targets))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"malicious": " "}, "malicious"),
        ({"output": "other"}, "output"),
        ({"words": ()}, "word"),
        ({"position": "middle"}, "position"),
        ({"all_to_all": True}, "all_to_all"),
        ({"output": "different", "pool": None}, "pool"),
    ],
)
def test_bad_options_are_refused(data, options, told):
    with pytest.raises(BadOption, match=told):
        KIT.attack("words", data, **options)


def test_sentence_beyond_the_vocabulary_is_refused(data):
    attack = KIT.attack("words", data, malicious="ключ")
    with pytest.raises(BadOption, match="cannot say"):
        attack.retarget(data.test.targets)


def test_tree_put_copies_and_fills_every_tensor():
    tree = {"a": torch.zeros(3, 2), "b": (torch.arange(3),)}
    new = {"a": torch.ones(1, 2), "b": (torch.tensor([9]),)}
    put = tree_put(tree, torch.tensor([1]), new)
    assert put["a"].tolist() == [[0, 0], [1, 1], [0, 0]]
    assert put["b"][0].tolist() == [0, 9, 2]
    assert tree["b"][0].tolist() == [0, 1, 2]
    assert isinstance(Batch(put, put["b"][0])[slice(0, 1)], Batch)
