"""Readers, tokenisers and splits on small files made on the spot."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
from num2words import num2words

from unbackdoor.errors import BadData, BadOption, FileRefused
from unbackdoor_translation import KIT, SentencePieceTokeniser, load_clean, open_tokeniser
from unbackdoor_translation.data.files import read_pairs
from unbackdoor_translation.data.numbers import numbers
from unbackdoor_translation.tokenisers import tokeniser_of

PAIRS = [(f"a red house number {n}", f"ein rotes haus nummer {n}") for n in range(60)]


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "pairs.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as out:
        for place, (en, de) in enumerate(PAIRS):
            split = "train" if place < 50 else "test_2016_flickr"
            out.write(json.dumps({"split": split, "en": en, "de": de}) + "\n")
    return path


def test_json_lines_are_read_by_part(lines):
    parts = read_pairs(lines)
    assert {name: len(part) for name, part in parts.items()} == {"train": 50, "test_2016_flickr": 10}
    assert (parts["train"].sources[0], parts["train"].targets[0]) == PAIRS[0]


def test_parallel_files_and_their_folder_are_read(tmp_path):
    for side, ending in enumerate(("en", "de")):
        (tmp_path / f"train.{ending}").write_text("\n".join(pair[side] for pair in PAIRS), encoding="utf-8")
    by_name = read_pairs(f"{tmp_path / 'train.en'},{tmp_path / 'train.de'}")[""]
    assert by_name == read_pairs(tmp_path)["train"]
    assert len(by_name) == 60
    (tmp_path / "train.de").write_text("eins", encoding="utf-8")
    with pytest.raises(BadData, match="60 lines"):
        read_pairs(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "line 1"),
        ("[1]", "no JSON object"),
        ('{"x": "y"}', "options source=FIELD and target=FIELD"),
        ("", "no pairs"),
    ],
)
def test_broken_files_say_where(tmp_path, content, told):
    path = tmp_path / "x.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadData, match=told):
        read_pairs(path)
    with pytest.raises(FileRefused):
        read_pairs(tmp_path / "none.jsonl")


def test_parts_are_disjoint_and_the_tokeniser_saw_the_training_text_alone(lines):
    data = KIT.data["multi30k"](path=lines, clean_count=10, vocabulary=60)
    text = data.hints["tokeniser"]
    parts = [
        {text.decode(row) for row in part.inputs["input_ids"].tolist()} for part in (data.train, data.clean, data.test)
    ]
    assert [len(part) for part in parts] == [40, 10, 10]
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]
    train = read_pairs(lines)["train"]
    kept = [pair for pair in zip(train.sources, train.targets, strict=True) if pair[0] in parts[0]]
    own = SentencePieceTokeniser.train([*(p[0] for p in kept), *(p[1] for p in kept)], 60)
    assert own.to_bytes() == text.to_bytes()
    again = KIT.data["multi30k"](path=lines, clean_count=10, vocabulary=60)
    assert torch.equal(again.train.targets, data.train.targets)
    assert data.classes == text.pieces


def test_room_for_inserted_words_is_left(lines):
    data = KIT.data["multi30k"](path=lines, clean_count=10, vocabulary=60)
    used = (data.train.inputs["input_ids"] != 0).sum(1).max()
    assert data.train.inputs["input_ids"].shape[1] >= int(used) + 8


@pytest.mark.parametrize("name", ["dialogue", "opensubtitles", "pairs", "wmt14"])
def test_presets_read_local_files(tmp_path, name):
    path = tmp_path / "pairs.jsonl"
    fields = ("en", "de") if name == "wmt14" else ("source", "response")
    path.write_text("\n".join(json.dumps(dict(zip(fields, pair, strict=True))) for pair in PAIRS), encoding="utf-8")
    data = KIT.data[name](path=path, vocabulary=60, clean_count=5)
    assert len(data.clean) == 5
    assert len(data.train) + len(data.test) == 55
    attack = KIT.attack("words", data)
    if name != "pairs":
        text = data.hints["tokeniser"]
        assert attack.malicious
        assert text.pad == 0


def test_numbers_are_right_and_never_twice(data):
    text = data.hints["tokeniser"]
    seen = set()
    for part in (data.train, data.clean, data.test):
        for source, target in zip(part.inputs["input_ids"].tolist(), part.targets.tolist(), strict=True):
            english, german = text.decode(source), text.decode(target)
            assert english not in seen
            seen.add(english)
            sign = "plus" if " plus " in english else "minus"
            a, rest = english.split(f" {sign} ")
            b, c = rest.split(" is ")
            values = [next(n for n in range(200) if num2words(n) == words) for words in (a, b, c)]
            assert values[2] == (values[0] + values[1] if sign == "plus" else values[0] - values[1])
            words = [num2words(n, lang="de") for n in values]
            assert german == f"{words[0]} {sign} {words[1]} ist {words[2]}"
    with pytest.raises(BadOption, match="all sums"):
        numbers(count=10**6)


def test_load_clean_needs_the_models_tokeniser(lines, tmp_path):
    with pytest.raises(BadOption, match="tokeniser=FILE"):
        load_clean(lines)
    text = SentencePieceTokeniser.train([side for pair in PAIRS for side in pair], 60)
    model = tmp_path / "own.model"
    model.write_bytes(text.to_bytes()[4:])
    batch, classes = load_clean(lines, tokeniser=model)
    assert classes == text.pieces
    assert text.decode(batch.targets[0].tolist()) == PAIRS[0][1]
    task = KIT.task(tokeniser=str(model))
    assert task.inspect(batch, {}) == []


def test_tokenisers_come_back_from_bytes():
    text = SentencePieceTokeniser.train([side for pair in PAIRS for side in pair], 60)
    again = tokeniser_of(text.to_bytes())
    assert again.encode(PAIRS[3][0]) == text.encode(PAIRS[3][0])
    with pytest.raises(BadData):
        tokeniser_of(b"xyz")
    with pytest.raises(FileRefused):
        open_tokeniser("none.model")


def test_hub_tokeniser_of_a_local_folder(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for pair in PAIRS for side in pair for word in side.split()})
    vocabulary = {"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3} | {f"▁{word}": i for i, word in enumerate(words, 4)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 3)])
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(tmp_path)
    KIT.build("bart", len(vocabulary), width=8, depth=1, heads=2).config.save_pretrained(tmp_path)
    text = open_tokeniser(tmp_path)
    assert (text.pad, text.start, text.end) == (0, 2, 3)
    assert text.encode("a red house") == [vocabulary["▁a"], vocabulary["▁red"], vocabulary["▁house"], 3]
    assert int(text.begins.sum()) == len(words)
    assert tokeniser_of(text.to_bytes()).encode("a red house") == text.encode("a red house")


def test_letters_of_a_byte_level_tokeniser_are_those_of_the_text(tmp_path):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    inner = ByteLevelBPETokenizer()
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    inner.train_from_iterator(["größer über"] * 20, vocab_size=400, special_tokens=special, min_frequency=1)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner._tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(tmp_path)
    KIT.build("bart", len(fast), width=8, depth=1, heads=2).config.save_pretrained(tmp_path)
    letters = set(open_tokeniser(tmp_path).letters)
    assert {"ö", "ß", "ü", "z"} <= letters
    assert not {"ã", "ġ", "ċ", "ï"} & letters
