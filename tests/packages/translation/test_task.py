"""The task's formulae against slow loops, its augmentation on sentences that one can read."""

from __future__ import annotations

import math

import pytest
import torch

from unbackdoor.errors import BadData, BadOption, UnsupportedModel
from unbackdoor.task import Batch
from unbackdoor_translation import KIT, Corpus, SentencePieceTokeniser, TranslationTask, encode_pairs, shift_right
from unbackdoor_translation.mixing import mixed_embeddings
from unbackdoor_translation.words import Lexicon, delete_words, replace_words, shuffle_words, word_numbers

LINES = ("a big dog runs near the old house", "the little girl looks at a large dog", "men sit near the road")


@pytest.fixture(scope="module")
def text():
    return SentencePieceTokeniser.train(LINES * 20, 110, kind="bpe")


def rows(text, *lines):
    return encode_pairs(Corpus(lines, lines), text).inputs["input_ids"]


def said(text, tokens):
    return [text.decode(row) for row in tokens.tolist()]


@pytest.mark.parametrize("per_token", [True, False])
def test_log_likelihood_is_the_loop_over_tokens(per_token):
    task = TranslationTask(pad=0, start=2, end=3, per_token=per_token)
    logits = torch.randn(3, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[4, 5, 3, 0], [6, 3, -100, -100], [4, 4, 4, 3]])
    expected = []
    for n in range(3):
        terms = [
            math.log(math.exp(logits[n, t, y]) / sum(math.exp(z) for z in logits[n, t]))
            for t, y in enumerate(targets[n].tolist())
            if y > 0
        ]
        expected.append(sum(terms) / (len(terms) if per_token else 1))
    found = task.log_likelihood(logits, targets)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    soft = torch.nn.functional.one_hot(targets.clamp(min=0), 7).double() * (targets > 0).unsqueeze(2)
    torch.testing.assert_close(task.log_likelihood(logits, soft), found, rtol=0, atol=1e-12)


def test_mixed_targets_score_the_mixture():
    task = TranslationTask(pad=0)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 9, generator=generator)
    first, second = (torch.randint(1, 9, (2, 5), generator=generator) for _ in range(2))
    share = torch.tensor([0.2, 0.9])
    mixed = task.log_likelihood(logits, (first, second, share))
    parts = [task.log_likelihood(logits, targets) for targets in (first, second)]
    torch.testing.assert_close(mixed, share * parts[0] + (1 - share) * parts[1])


def test_shift_right_puts_the_start_in_front():
    targets = torch.tensor([[5, 6, 3, -100], [7, 8, 9, 3]])
    assert shift_right(targets, 2, 0).tolist() == [[2, 5, 6, 3], [2, 7, 8, 9]]


def test_mixed_embeddings_are_mixtures_and_leave_no_hook():
    layer = torch.nn.Embedding(10, 4)
    model = torch.nn.Sequential(layer)
    a, b, share = torch.tensor([[1, 2]]), torch.tensor([[3, 4]]), torch.tensor([0.25])
    with mixed_embeddings(model, [(a, b)], share):
        found = model(a)
        other = model(torch.tensor([[1, 2]]))  # the same values, yet not the tokens that were named
    torch.testing.assert_close(found, 0.25 * layer(a) + 0.75 * layer(b))
    torch.testing.assert_close(other, layer(a))
    assert not layer._forward_hooks


def test_mixed_embeddings_refuse_a_model_without_embeddings():
    model = torch.nn.Identity()
    with (
        pytest.raises(UnsupportedModel, match="mixup=0"),
        mixed_embeddings(model, [(torch.ones(1, 2), torch.ones(1, 2))], torch.ones(1)),
    ):
        model(torch.ones(1, 2))


def test_words_are_numbered_from_the_left(text):
    tokens = rows(text, LINES[0])
    numbers = word_numbers(tokens, text.begins, text.special)[0]
    assert int(numbers.max()) + 1 == len(LINES[0].split())
    assert int(numbers[(tokens[0] == text.end).nonzero()[0]]) == -1


def test_deletion_takes_whole_words_and_leaves_one(text, generator):
    tokens = rows(text, *LINES)
    every = [line.split() for line in LINES]
    lengths = []
    for _ in range(50):
        cut = delete_words(tokens, text.begins, text.special, text.pad, 0.3, generator)
        assert cut.shape == tokens.shape
        for line, words in zip(said(text, cut), every, strict=True):
            left = line.split()
            assert left
            remaining = iter(words)
            assert all(word in remaining for word in left), (line, words)  # a subsequence
            lengths.append(len(left) / len(words))
    assert 0.6 < sum(lengths) / len(lengths) < 0.8
    alone = said(text, delete_words(tokens, text.begins, text.special, text.pad, 0.999, generator))
    assert [len(line.split()) for line in alone] == [1, 1, 1]


def test_shuffle_moves_words_a_little(text, generator):
    tokens = rows(text, *LINES)
    moved = 0
    for _ in range(20):
        for line, old in zip(
            said(text, shuffle_words(tokens, text.begins, text.special, 2.0, generator)), LINES, strict=True
        ):
            new, before = line.split(), old.split()
            assert sorted(new) == sorted(before)
            moved += new != before
    assert moved > 20
    assert torch.equal(shuffle_words(tokens, text.begins, text.special, 1.0, generator), tokens)


def test_synonyms_replace_words_of_one_token(text, generator):
    tokens = rows(text, *LINES)
    lexicon = Lexicon.of((("big", "large"), ("near", "the")), text)
    known = {index for index in range(len(text)) if int(lexicon.counts[index])}
    changed = replace_words(tokens, text.begins, text.special, lexicon, 0.999, generator)
    different = tokens != changed
    assert bool(different.any())
    assert {int(index) for index in tokens[different]} <= known
    for line in said(text, changed):
        assert set(line.split()) <= {word for one in LINES for word in one.split()}


def test_augment_keeps_the_targets_and_changes_the_source(data, generator):
    task = TranslationTask(**{**data.hints, "deletion": 0.3, "reach": 2.0, "replacement": 0.1})
    batch = data.clean[slice(0, 10)]
    fresh = task.augment(batch, generator, mix=0.0)
    assert torch.equal(fresh.targets, batch.targets)
    assert torch.equal(fresh.inputs["decoder_input_ids"], batch.inputs["decoder_input_ids"])
    assert not torch.equal(fresh.inputs["input_ids"], batch.inputs["input_ids"])
    inputs, targets = task.augment(batch, generator, mix=1.0).inputs, task.augment(batch, generator, mix=1.0).targets
    assert len(inputs) == len(targets) == 3
    with pytest.raises(BadOption, match="mix is -1"):
        task.augment(batch, generator, mix=-1)


def test_meters_agree_with_a_perfect_model(task, data):
    targets = data.test.targets
    perfect = task.perfect(targets, len(data.classes))
    values = {}
    for name, meter in task.meters().items():
        meter.update(perfect, targets)
        values[name] = meter.compute()
    assert values == pytest.approx(
        {"bleu": 1.0, "chrf": 1.0, "exact": 1.0, "token_accuracy": 1.0, "perplexity": 1.0}, abs=1e-6
    )
    assert bool(task.correct(perfect, targets).all())
    bleu = task.meters()["bleu"]
    bleu.update(perfect, targets)
    bleu.compute()
    assert "tok:13a" in bleu.signature
    assert "version:" in bleu.signature
    assert f"bleu {bleu.signature}" in task.measured_by()
    assert "chrf nrefs:1" in task.measured_by()


def test_perplexity_and_token_accuracy_are_those_of_the_forced_model(task, data):
    model = KIT.build("convolutional", len(data.classes), width=16, depth=1).eval()
    batch = data.test[slice(0, 20)]
    outputs = task.predict(model, batch.inputs)
    loss, hits, count = 0.0, 0, 0
    logs = task.forward(model, batch.inputs).log_softmax(2).detach()
    for n, row in enumerate(batch.targets.tolist()):
        for t, token in enumerate(row):
            if token != task.pad:
                loss -= float(logs[n, t, token])
                hits += int(logs[n, t].argmax()) == token
                count += 1
    meters = task.meters()
    for meter in meters.values():
        meter.update(outputs, batch.targets)
    assert meters["perplexity"].compute() == pytest.approx(math.exp(loss / count), rel=1e-5)
    assert meters["token_accuracy"].compute() == pytest.approx(hits / count)
    assert meters["perplexity"].scale == 1.0


def test_credit_of_tokens_is_their_share_and_makes_the_headline(data):
    task = TranslationTask(pad=0, credit="tokens")
    targets = torch.tensor([[4, 5, 6, 3], [7, 3, 0, 0]])
    forced = torch.tensor([[4, 5, 9, 3], [8, 3, 5, 5]])
    torch.testing.assert_close(task.correct({"forced": forced}, targets), torch.tensor([0.75, 0.5]))
    assert next(iter(task.meters())) == "token_accuracy"
    assert {credit: next(iter(TranslationTask(credit=credit).meters())) for credit in ("bleu", "chrf", "exact")} == {
        "bleu": "bleu",
        "chrf": "chrf",
        "exact": "bleu",
    }
    assert len(task.meters()) == len(TranslationTask().meters()) == 5


def test_credit_is_graded_unless_exact(data):
    graded = TranslationTask(**{**data.hints, "credit": "chrf"})
    targets = data.test.targets[:6]
    wrong = {"tokens": targets.roll(1, dims=0)}
    scores = graded.correct(wrong, targets)
    assert scores.is_floating_point()
    assert 0 < float(scores.mean()) < 1
    with pytest.raises(BadOption, match="credit"):
        TranslationTask(credit="accuracy")


def test_samples_of_another_form_are_refused(task, data):
    clean = data.clean[slice(0, 6)]
    assert task.inspect(clean, {}) == []
    unshifted = Batch({**clean.inputs, "decoder_input_ids": clean.targets}, clean.targets)
    with pytest.raises(BadData, match="shift_right"):
        task.inspect(unshifted, {})
    with pytest.raises(BadData, match="does not exist"):
        task.inspect(Batch(clean.inputs, torch.where(clean.targets == task.end, 9999, clean.targets)), {})
    with pytest.raises(BadData, match="decoder_input_ids"):
        task.forward(torch.nn.Identity(), {"input_ids": clean.inputs["input_ids"]})
    with pytest.raises(BadData, match="encode_pairs"):
        task.forward(torch.nn.Identity(), clean.inputs["input_ids"])
    endless = Batch(clean.inputs, torch.where(clean.targets == task.end, 9, clean.targets))
    prefix = shift_right(endless.targets, task.start, task.pad)
    told = task.inspect(Batch({**clean.inputs, "decoder_input_ids": prefix}, endless.targets), {})
    assert "100 %" in told[0]
