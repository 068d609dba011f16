"""Another model's answers as targets, against dense tables; which tokens mixtures evoke."""

from __future__ import annotations

import pytest
import torch

from unbackdoor.data import CleanSet
from unbackdoor.defender.clean_loss import CleanLoss
from unbackdoor.defender.purifier import Run
from unbackdoor_translation import KIT, TranslationTask

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
    task = TranslationTask(**{**data.hints, "disturbed": 1.0})
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
