"""Another model's answers as targets, against dense tables; which tokens mixtures evoke; made-up words."""

from __future__ import annotations

import pytest
import torch

from unbackdoor.clean_loss import CleanLoss
from unbackdoor.data import CleanSet
from unbackdoor.errors import BadOption
from unbackdoor.purifier import Run
from unbackdoor_translation import KIT, TranslationTask
from unbackdoor_translation.words import insert_words

VOCABULARY, PAD = 40, 0


@pytest.fixture(params=[True, False], ids=["per token", "sum"])
def plain(request) -> TranslationTask:
    return TranslationTask(pad=PAD, start=2, end=3, per_token=request.param)


@pytest.fixture
def logits(generator):
    return [3 * torch.randn(3, 5, VOCABULARY, dtype=torch.float64, generator=generator) for _ in range(2)]


@pytest.fixture
def rows(generator):
    made = [torch.randint(4, VOCABULARY, (3, 7), generator=generator) for _ in range(2)]
    for row, lengths in zip(made, ((5, 3, 4), (2, 5, 4)), strict=True):
        for sentence, length in zip(row, lengths, strict=True):
            sentence[length:] = PAD
    return made


def dense(reference, targets, suspects, *, per_token):
    """Weights ``(batch, T, vocabulary)`` by plain loops."""
    likely = reference.softmax(2)
    first, second, share = targets
    out = torch.zeros_like(reference)
    for n in range(len(first)):
        for t in range(reference.shape[1]):
            labels = torch.zeros(VOCABULARY, dtype=torch.float64)
            for side, part in ((first, float(share[n])), (second, 1 - float(share[n]))):
                length = int((side[n] != PAD).sum())
                if t < length:
                    labels[side[n, t]] += part / (length if per_token else 1)
            believed = likely[n, t].masked_fill(suspects, 0)
            free = labels[~suspects].sum()
            out[n, t] = torch.where(suspects, labels, believed / believed.sum() * free)
    return out


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_imitation_is_the_dense_table_with_its_tail_summed(plain, logits, rows, generator, share):
    targets = (*rows, torch.full((3,), share, dtype=torch.float64))
    suspects = torch.rand(VOCABULARY, generator=generator) < 0.2
    weights = dense(logits[0], targets, suspects, per_token=plain.per_token)
    kept = plain.imitate(logits[0], targets, suspects)
    logs = logits[1].log_softmax(2)
    expected = []
    for n in range(3):
        total = 0.0
        for t in range(5):
            named = kept["tokens"][n, t]
            others = torch.ones(VOCABULARY, dtype=torch.bool)
            others[named] = False
            total += float((weights[n, t] * logs[n, t])[~others].sum())
            total += float(weights[n, t][others].sum() * logs[n, t][others].logsumexp(0))
        expected.append(total)
    found = plain.log_likelihood(logits[1], kept)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
    everywhere = plain.log_likelihood(logits[1], plain.imitate(logits[0], targets, torch.ones_like(suspects)))
    torch.testing.assert_close(everywhere, plain.log_likelihood(logits[1], targets), rtol=0, atol=1e-12)


def test_imitation_keeps_its_width_and_little_memory(plain, logits, rows):
    targets = (*rows, torch.full((3,), 0.5))
    kept = plain.imitate(logits[0], targets, torch.zeros(VOCABULARY, dtype=torch.bool))
    assert kept["tokens"].shape == (3, 7, 18)
    assert kept["weights"].shape == (3, 7, 19)
    assert float(kept["weights"][:, 5:].abs().sum()) == 0
    one = plain.imitate(logits[0], rows[0], torch.zeros(VOCABULARY, dtype=torch.bool))
    assert one["weights"].sum(2).count_nonzero() == (rows[0] != PAD).sum()


def test_imitation_is_best_where_the_models_agree(plain, logits, rows):
    kept = plain.imitate(logits[0], rows[0], torch.zeros(VOCABULARY, dtype=torch.bool))
    given = logits[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(plain.log_likelihood(given, kept).sum(), given)
    assert float(slope.abs().max()) < 1e-9
    assert float(plain.log_likelihood(logits[1], kept).sum()) < float(plain.log_likelihood(logits[0], kept).sum())


def test_evoked_tokens_are_rare_ones_out_of_proportion():
    task = TranslationTask(pad=PAD)
    logits = torch.full((50, 4, VOCABULARY), -20.0)
    targets = torch.full((50, 4), 5)
    targets[:25] = 6
    logits.scatter_(2, targets.unsqueeze(2), 5.0)
    logits[:, :, 5:7] = 5.0  # two frequent words, each as likely as the other
    logits[:, 0, 30] = 4.0  # a word that no target names
    rates = task.evoked(logits, targets)
    assert rates.shape == (VOCABULARY,)
    assert int(rates.argmax()) == 30
    assert float(rates[5:7].max()) < 1.0 < float(rates[30])
    named = torch.full((50, 4), 30)
    assert float(task.evoked(logits, named)[30]) == 0.0


def test_teacher_does_not_read_the_disturbance(data, monkeypatch):
    task = TranslationTask(**data.hints)
    assert task.insertion > 0
    model = KIT.build("lstm", len(data.classes), seed=0, width=16, depth=1).eval()
    run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), model)
    read: dict[int, set[tuple[int, ...]]] = {}
    forward = TranslationTask.forward

    def watched(self, given, inputs):
        sides = inputs[:2] if isinstance(inputs, tuple) else [inputs]
        known = read.setdefault(id(given), set())
        known |= {tuple(i for i in row if i != self.pad) for side in sides for row in side["input_ids"].tolist()}
        return forward(self, given, inputs)

    monkeypatch.setattr(TranslationTask, "forward", watched)
    clean = {tuple(i for i in row if i != task.pad) for row in data.clean.inputs["input_ids"].tolist()}
    loss = CleanLoss.of(model, task, CleanSet(data.clean), run, distil=1.0, mixup=1.0, disturb=True)
    samples, objective = loss.prepare(4, 20, 1.0)
    read.pop(id(model), None)
    assert float(objective(next(samples.batches(20, run.generator))).detach()) > 0
    assert read[id(loss.teacher.model)] <= clean
    assert not read[id(model)] <= clean


def test_made_up_words_stand_between_whole_words(data, task, generator):
    text = task.text
    tokens = data.test.inputs["input_ids"]
    changed = insert_words(tokens, text.begins, text.special, text.pad, 0.3, 4, generator)
    assert changed.shape == tokens.shape
    added = 0
    for before, after in zip(tokens.tolist(), changed.tolist(), strict=True):
        old, new = ([i for i in row if i != text.pad] for row in (before, after))
        assert new[-1] == text.end
        left = iter(new)
        assert all(token in left for token in old), "the sentence is a subsequence"
        words = text.decode(new).split()
        remaining = iter(words)
        assert all(word in remaining for word in text.decode(old).split()), (text.decode(old), words)
        added += len(words) - len(text.decode(old).split())
    gaps = sum(len(text.decode(row).split()) + 1 for row in tokens.tolist())
    assert 0.1 < added / gaps < 0.35  # rows without room stay as they are
    twice = insert_words(tokens, text.begins, text.special, text.pad, 0.3, 4, torch.Generator().manual_seed(0))
    again = insert_words(tokens, text.begins, text.special, text.pad, 0.3, 4, torch.Generator().manual_seed(0))
    assert torch.equal(twice, again)


def test_made_up_words_reach_tokens_that_clean_text_never_holds(data, task, generator):
    text = task.text
    tokens = data.clean.inputs["input_ids"]
    seen = torch.zeros(len(text), dtype=torch.bool).scatter(0, tokens.flatten(), True)
    met = torch.zeros_like(seen)
    for _ in range(60):
        changed = insert_words(tokens, text.begins, text.special, text.pad, 0.3, 4, generator)
        met |= torch.zeros_like(seen).scatter(0, changed.flatten(), True)
    usable = ~text.special
    assert float(seen[usable].float().mean()) < 0.7
    assert float(met[usable].float().mean()) > 0.98


def test_made_up_words_of_one_token_are_not_the_batch_s_own(data, task, generator):
    text = task.text
    tokens = data.test.inputs["input_ids"]
    own = {word for row in tokens.tolist() for word in text.decode(row).split()}
    for _ in range(10):
        changed = insert_words(tokens, text.begins, text.special, text.pad, 0.3, 1, generator)
        for before, after in zip(tokens.tolist(), changed.tolist(), strict=True):
            words, old = text.decode(after).split(), text.decode(before).split()
            for word in old:
                words.remove(word)
            singles = [word for word in words if word in own and len(text.word(word)) == 1]
            assert not singles


def test_rows_without_room_stay_as_they_are(data, task, generator):
    text = task.text
    full = data.test.inputs["input_ids"][:, :4].clone()
    full[:, 3] = text.end
    full[full == text.pad] = int(text.begins.nonzero()[0])
    assert torch.equal(insert_words(full, text.begins, text.special, text.pad, 0.9, 4, generator), full)


def test_disturbance_is_off_without_tokeniser_or_share(data, generator):
    batch = data.clean[slice(0, 8)]
    for task in (TranslationTask(), TranslationTask(**{**data.hints, "insertion": 0.0})):
        assert task.disturb(batch.inputs, generator) is batch.inputs
    task = TranslationTask(**{**data.hints, "insertion": 0.9})
    first, second, share = task.disturb((batch.inputs, batch.inputs, torch.ones(8)), generator)
    assert not torch.equal(first["input_ids"], second["input_ids"])
    assert torch.equal(first["decoder_input_ids"], batch.inputs["decoder_input_ids"])
    assert torch.equal(share, torch.ones(8))
    with pytest.raises(BadOption, match="insertion"):
        TranslationTask(insertion=1.0)
    with pytest.raises(BadOption, match="made_up"):
        TranslationTask(made_up=0)


def test_a_share_of_the_sentences_is_disturbed(data, generator):
    batch = data.clean[slice(0, 60)]
    task = TranslationTask(**{**data.hints, "insertion": 0.9, "disturbed": 0.5})
    changed = (task.disturb(batch.inputs, generator)["input_ids"] != batch.inputs["input_ids"]).any(1)
    assert 18 <= int(changed.sum()) <= 42
    with pytest.raises(BadOption, match="disturbed"):
        TranslationTask(disturbed=1.5)


def test_spelled_words_consist_of_short_tokens(data, task, generator):
    text = task.text
    tokens = data.test.inputs["input_ids"]
    marked = insert_words(
        tokens, text.begins, text.special, text.pad, 0.4, 4, generator,
        short=text.short, spelled=1.0,
    )  # fmt: skip
    assert not torch.equal(marked, tokens)
    for before, after in zip(tokens.tolist(), marked.tolist(), strict=True):
        left = [index for index in after if index != text.pad]
        for index in before:
            if index != text.pad:
                left.remove(index)
        assert all(bool(text.short[index]) for index in left), [text.pieces[index] for index in left]
    assert {text.pieces[index] for index in text.word("cf")} <= {
        text.pieces[index] for index in text.short.nonzero().flatten().tolist()
    }
    with pytest.raises(BadOption, match="spelled"):
        TranslationTask(spelled=1.5)
