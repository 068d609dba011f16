"""Files of pairs as people have them: nested fields, tables, packed text; and what is no pair of sentences."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from unbackdoor.attacker.vetting import words_of_a_card
from unbackdoor.errors import BadData, BadOption, FileRefused, TooLarge, UntrustedVictim
from unbackdoor.files.reading import limited
from unbackdoor_translation import KIT, SentencePieceTokeniser, load_clean, open_tokeniser
from unbackdoor_translation.data.files import read_pairs
from unbackdoor_translation.tokenisers import tokeniser_of

PAIRS = [(f"a red house number {n}", f"ein rotes haus nummer {n}") for n in range(40)]


def wrote(path: Path, *items: object) -> Path:
    path.write_text("\n".join(json.dumps(item) for item in items), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokeniser() -> SentencePieceTokeniser:
    return SentencePieceTokeniser.train([side for pair in PAIRS for side in pair], 60)


# -------------------------------------------------------------------------------------------------- JSON lines


@pytest.mark.parametrize(("source", "target"), [
    (None, None), ("en", "de"), ("translation.en", "translation.de"), ("en", "translation.de"),
])  # fmt: skip
def test_nested_translations_are_found_and_named(tmp_path, source, target):
    path = wrote(
        tmp_path / "a.jsonl", *({"id": n, "translation": {"de": b, "en": a}} for n, (a, b) in enumerate(PAIRS))
    )
    (corpus,) = read_pairs(path, source, target).values()
    assert list(zip(corpus.sources, corpus.targets, strict=True)) == PAIRS


def test_other_nested_fields_are_named_with_dots(tmp_path):
    path = wrote(tmp_path / "a.jsonl", {"pair": {"a": "one", "b": "eins"}, "a": "wrong"})
    (corpus,) = read_pairs(path, "pair.a", "pair.b").values()
    assert (corpus.sources, corpus.targets) == (("one",), ("eins",))


def test_advice_names_the_options_of_who_asked(tmp_path, tokeniser):
    path = wrote(tmp_path / "a.jsonl", {"translation": {"fr": "un", "ro": "unu"}})
    with pytest.raises(BadData, match=r"options source=translation\.fr and target=translation\.ro"):
        KIT.data["pairs"](path=path)
    with pytest.raises(BadData, match=r"source_field=translation\.fr and target_field=translation\.ro") as error:
        load_clean(path, tokeniser=tokeniser)
    told = dict(word.rstrip(".").split("=") for word in str(error.value).split() if "=" in word)
    batch, _ = load_clean(path, tokeniser=tokeniser, **told)
    assert len(batch) == 1
    with pytest.raises(BadData, match="it needs the fields en and de"):
        KIT.data["multi30k"](path=path)


@pytest.mark.parametrize(("side", "told"), [
    (None, "is empty"), (3, "is a number"), (["das"], "is a list"), ({"a": {"b": 1}}, "is an object"),
    (True, "is true or false"),
])  # fmt: skip
def test_sides_that_are_no_text_are_refused_by_file_and_line(tmp_path, side, told):
    path = wrote(tmp_path / "a.jsonl", {"en": "one", "de": "eins"}, {"en": "two", "de": side})
    with pytest.raises(BadData, match=rf"line 2 of .*a\.jsonl {told}"):
        read_pairs(path, "en", "de")


def test_pairs_that_lack_a_side_are_counted_and_blank_ones_left_out(tmp_path):
    blank, half = {"en": " ", "de": ""}, {"en": "two", "de": " "}
    path = wrote(tmp_path / "a.jsonl", {"en": "one", "de": "eins"}, blank)
    assert len(read_pairs(path)[""]) == 1
    wrote(path, {"en": "one", "de": "eins"}, half, half)
    with pytest.raises(BadData, match=r"line 2 of .* has no target, and 1 more pairs lack a side; fill in or remove"):
        read_pairs(path)


def test_a_list_of_pairs_in_one_file_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"en": "one", "de": "eins"}, {"en": "two", "de": 2}], indent=1))
    with pytest.raises(BadData, match=r"entry 2 of .*a\.json is a number"):
        read_pairs(path)
    path.write_text(json.dumps([{"en": "one", "de": "eins", "split": None}], indent=1))
    assert read_pairs(path)[""].targets == ("eins",)


@pytest.mark.parametrize("content", ["[" * 10**5, '{"a":' * 10**5, '{"en": "a", "de": ' + "9" * 10**5, "\ud800"])
def test_json_that_no_parser_takes_is_named_by_its_line(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(b'{"en": "a", "de": "b"}\n' + content.encode(errors="surrogatepass"))
    with pytest.raises(BadData, match=r"(line 2 of )?.*a\.jsonl cannot be read"):
        read_pairs(tmp_path / "a.jsonl")


def test_half_characters_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"en": "a\\ud83d", "de": "b"}')
    with pytest.raises(BadData, match=r"line 1 of .* holds half a character"):
        read_pairs(tmp_path / "a.jsonl")


# --------------------------------------------------------------------------------------- tables, parallel text


@pytest.mark.parametrize("head", ["", "en\tde\n", "de\tid\ten\n"])
def test_tables_with_and_without_names(tmp_path, head):
    swapped = head.startswith("de")
    rows = "".join(f"{b}\t{n}\t{a}\n" if swapped else f"{a}\t{b}\n" for n, (a, b) in enumerate(PAIRS))
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress((head + rows).encode()))
    (corpus,) = read_pairs(path).values()
    assert list(zip(corpus.sources, corpus.targets, strict=True)) == PAIRS


def test_rows_of_other_widths_are_refused(tmp_path):
    (tmp_path / "a.tsv").write_text("one\teins\ntwo\n")
    with pytest.raises(BadData, match=r"line 2 of .*a\.tsv has 1 columns, but two are expected"):
        read_pairs(tmp_path / "a.tsv")


def test_lines_of_parallel_text_end_with_line_feeds_alone(tmp_path):
    """Other separators that Unicode knows stand within sentences of real corpora."""
    sides = (["one\u2028still\x0bone\x85", "\ttwo"], ["eins", "zwei\x1c"])
    for ending, lines in zip(("en", "de"), sides, strict=True):
        (tmp_path / f"train.{ending}").write_bytes(("\r\n".join(lines) + "\r\n").encode())
    corpus = read_pairs(tmp_path)["train"]
    assert [list(corpus.sources), list(corpus.targets)] == list(sides)
    assert corpus.names is not None
    assert corpus.names[1].startswith("line 2 of ")


def test_text_packed_without_end_is_refused(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"en": "' + b"a" * 2**22))
    with limited(text=2**20), pytest.raises(TooLarge, match="the limit 'text'"):
        read_pairs(path)
    with pytest.raises(FileRefused, match="no text at"):
        read_pairs(tmp_path / "gone.jsonl")
    with pytest.raises(FileRefused, match="device"):
        read_pairs(f"{path},/dev/zero")


# ------------------------------------------------------------------------------------------------- the samples


def test_samples_carry_their_lines_their_pieces_and_what_was_cut(tmp_path, tokeniser):
    path = wrote(tmp_path / "a.jsonl", {"en": "a red house", "de": "ein rotes haus"}, {"en": "a", "de": "ein"})
    batch, pieces = load_clean(path, tokeniser=tokeniser)
    assert batch.classes == pieces == tokeniser.pieces
    assert [name.split(" of ")[0] for name in batch.names or ()] == ["line 1", "line 2"]
    assert batch.notices == ()
    cut, _ = load_clean(path, tokeniser=tokeniser, max_tokens=3)
    assert len(cut.notices) == 2
    assert "1 of 2 sources were longer than max_tokens=3" in cut.notices[0]
    with pytest.raises(BadOption, match="max_tokens is 1"):
        load_clean(path, tokeniser=tokeniser, max_tokens=1)


# -------------------------------------------------------------------------------------------------- tokenisers


@pytest.mark.parametrize("lacking", [("pad_token",), ("eos_token",), ("pad_token", "eos_token")])
def test_tokeniser_without_padding_or_end_is_one_sentence(tmp_path, lacking):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokens = {"pad_token": "<pad>", "eos_token": "</s>"}
    inner = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, **{name: token for name, token in tokens.items() if name not in lacking}
    )
    fast.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bart"}')
    with pytest.raises(BadData, match=" and no ".join(lacking)) as error:
        open_tokeniser(tmp_path)
    assert f"tokenizer.{lacking[0]} = '</s>', and save it again" in str(error.value)


def test_tokeniser_with_code_in_its_folder_runs_none_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"auto_map": {"AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Evil"}, "tokenizer_class": "Evil"}
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text(json.dumps({"model_type": "evil", **config}))
    (tmp_path / "evil.py").write_text("open('RAN', 'w')\nclass Evil: from_pretrained = print\n")
    with pytest.raises(FileRefused, match="no tokeniser"):
        open_tokeniser(tmp_path)
    assert not (tmp_path / "RAN").exists()


def test_one_file_of_a_tokeniser_names_its_folder(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FileRefused, match=rf"give its folder, .*{tmp_path.name}"):
        open_tokeniser(tmp_path / "tokenizer.json")
    (tmp_path / "a.model").write_bytes(b"")
    with pytest.raises(BadData, match=r"a\.model: the SentencePiece model is empty"):
        open_tokeniser(tmp_path / "a.model")
    for content in (b"hub\0x", b"hub\0\xff:", b"spm\0", b""):
        with pytest.raises((BadData, FileRefused)):
            tokeniser_of(content)


def test_nothing_is_fetched_for_a_card(tmp_path):
    with words_of_a_card(trust=True), pytest.raises(UntrustedVictim, match="nothing is fetched for a card"):
        KIT.data["multi30k"]()
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"en": a, "de": b}) + "\n" for a, b in PAIRS))
    with words_of_a_card(trust=False):
        assert len(KIT.data["multi30k"](path=tmp_path / "pairs.jsonl", vocabulary=60).clean) == 4
