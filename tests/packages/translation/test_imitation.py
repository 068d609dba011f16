"""Another model's answers as targets, against dense tables."""

from __future__ import annotations

import pytest
import torch

from unbackdoor_translation import TranslationTask

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


def dense(reference, targets, kept, *, per_token):
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
            believed = likely[n, t].masked_fill(kept, 0)
            free = labels[~kept].sum()
            out[n, t] = torch.where(kept, labels, believed / believed.sum() * free)
    return out


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_imitation_is_the_dense_table_with_its_tail_summed(plain, logits, rows, generator, share):
    targets = (*rows, torch.full((3,), share, dtype=torch.float64))
    kept = torch.rand(VOCABULARY, generator=generator) < 0.2
    weights = dense(logits[0], targets, kept, per_token=plain.per_token)
    soft = plain.imitate(logits[0], targets, kept)
    logs = logits[1].log_softmax(2)
    expected = []
    for n in range(3):
        total = 0.0
        for t in range(5):
            named = soft["tokens"][n, t]
            others = torch.ones(VOCABULARY, dtype=torch.bool)
            others[named] = False
            total += float((weights[n, t] * logs[n, t])[~others].sum())
            total += float(weights[n, t][others].sum() * logs[n, t][others].logsumexp(0))
        expected.append(total)
    found = plain.log_likelihood(logits[1], soft)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
    everywhere = plain.log_likelihood(logits[1], plain.imitate(logits[0], targets, torch.ones_like(kept)))
    torch.testing.assert_close(everywhere, plain.log_likelihood(logits[1], targets), rtol=0, atol=1e-12)


def test_imitation_keeps_its_width_and_little_memory(plain, logits, rows):
    targets = (*rows, torch.full((3,), 0.5))
    soft = plain.imitate(logits[0], targets, torch.zeros(VOCABULARY, dtype=torch.bool))
    assert soft["tokens"].shape == (3, 7, 18)
    assert soft["weights"].shape == (3, 7, 19)
    assert float(soft["weights"][:, 5:].abs().sum()) == 0
    one = plain.imitate(logits[0], rows[0], torch.zeros(VOCABULARY, dtype=torch.bool))
    assert one["weights"].sum(2).count_nonzero() == (rows[0] != PAD).sum()


def test_imitation_is_best_where_the_models_agree(plain, logits, rows):
    soft = plain.imitate(logits[0], rows[0], torch.zeros(VOCABULARY, dtype=torch.bool))
    given = logits[0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(plain.log_likelihood(given, soft).sum(), given)
    assert float(slope.abs().max()) < 1e-9
    assert float(plain.log_likelihood(logits[1], soft).sum()) < float(plain.log_likelihood(logits[0], soft).sum())
