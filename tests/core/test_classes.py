"""`ClassTask`, which a package derives its task from: promises, oracles and refusals."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch.testing import assert_close

from unbackdoor.classes import Accuracy, ClassTask, pick_logits
from unbackdoor.errors import BadData, BadOption
from unbackdoor.mixing import mix_up
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask, check_task, tiny_models

LOGITS = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2])


@dataclass(frozen=True)
class Features(ClassTask):
    """What a package has to write, in the shortest form."""

    name: ClassVar[str] = "features"

    def augment(self, batch, generator, *, mix=1.0):
        if mix == 0 or not batch.inputs.is_floating_point():
            return batch
        mixed, partners, share = mix_up(batch.inputs, generator, mix=mix)
        return Batch(mixed, (batch.targets, batch.targets[partners], share))

    def perturbable(self, inputs):
        return inputs


@pytest.mark.parametrize("name", ["mlp", "conv-bn"])
def test_task_of_a_package_keeps_its_promises(name):
    models = tiny_models()
    tiny = models.get(name, models["conv-bn"])
    check_task(Features(), tiny.batch(6), tiny.build())


@pytest.mark.parametrize("form", ["classes", "probabilities", "mixture"])
def test_scores_and_imitation_are_those_of_the_reference(form):
    share = torch.linspace(0, 1, 7, dtype=torch.float64)
    given = {
        "classes": LABELS,
        "probabilities": LOGITS.flip(0).softmax(1),
        "mixture": (LABELS, LABELS.flip(0), share),
    }[form]
    mine, theirs = Features(), ClassificationTask()
    kept = torch.tensor([False, True, False, True])
    assert_close(mine.log_likelihood(LOGITS, given), theirs.log_likelihood(LOGITS, given))
    assert_close(mine.imitate(LOGITS, given, kept), theirs.imitate(LOGITS, given, kept))


def test_judgement_counts_classes():
    task, meter = Features(), Accuracy()
    right = LOGITS.argmax(1) == LABELS
    assert torch.equal(task.correct(LOGITS, LABELS), right)
    meter.update(LOGITS[:3], LABELS[:3])
    meter.update(LOGITS[3:], LABELS[3:])
    assert meter.compute() == float(right.double().mean())
    assert task.samples_per_class(LABELS) == 7 / 4
    assert torch.equal(task.strata(LABELS), LABELS)


def test_labels_that_do_not_fit_are_refused_and_missing_classes_told():
    task = Features()
    assert task.inspect(Batch(LOGITS, LABELS), LOGITS) == []
    (notice,) = task.inspect(Batch(LOGITS, LABELS % 3), LOGITS)
    assert "no clean sample of 1 of 4 classes: 3" in notice
    with pytest.raises(BadData, match="do not exist"):
        task.inspect(Batch(LOGITS, LABELS + 1), LOGITS)
    with pytest.raises(BadData, match="class indices"):
        task.inspect(Batch(LOGITS, LABELS.double()), LOGITS)


@pytest.mark.parametrize("answer", [LOGITS, {"logits": LOGITS}, SimpleNamespace(logits=LOGITS), (LOGITS, LABELS)])
def test_logits_are_picked_out_of_what_models_return(answer):
    assert pick_logits(answer) is LOGITS


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 3, 4, 6)])
@pytest.mark.parametrize("per_sample", [True, False])
def test_mix_up_is_the_loop_over_samples(shape, per_sample):
    inputs = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixed, partners, share = mix_up(inputs, torch.Generator().manual_seed(1), mix=0.4, per_sample=per_sample)
    expected = [float(share[i]) * inputs[i] + (1 - float(share[i])) * inputs[partners[i]] for i in range(5)]
    assert_close(mixed, torch.stack(expected))
    assert sorted(partners.tolist()) == list(range(5))
    assert (len(share.unique()) == 1) != per_sample
    again = mix_up(inputs, torch.Generator().manual_seed(1), mix=0.4, per_sample=per_sample)
    assert torch.equal(again[0], mixed)


def test_mix_up_rounds_integers_and_refuses_no_mixture():
    inputs = torch.arange(60, dtype=torch.uint8).view(5, 12)
    mixed, partners, share = mix_up(inputs, torch.Generator().manual_seed(1), mix=1.0)
    assert mixed.dtype is torch.uint8
    exact = share[:, None] * inputs + (1 - share[:, None]) * inputs[partners]
    assert_close(mixed.float(), exact, rtol=0, atol=0.5)
    with pytest.raises(BadOption, match="must be above 0"):
        mix_up(inputs, torch.Generator(), mix=0.0)
