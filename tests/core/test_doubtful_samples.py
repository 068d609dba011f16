"""Clean samples are not believed blindly: wrong labels and a wrong reading of the inputs are told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch.testing import assert_close

import unbackdoor
from unbackdoor.defender.methods.ft import FT
from unbackdoor.defender.preflight.check import doubtful
from unbackdoor.defender.preflight.standing import standing
from unbackdoor.defender.purifier import option
from unbackdoor.errors import PreflightFailed
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask, tiny_victim

TASK = ClassificationTask()
QUICK = {"steps": 2}


@pytest.fixture(scope="module")
def victim():
    return tiny_victim()


def told(model, clean, **options):
    _, report = unbackdoor.purify(model, clean, task=TASK, method="nft", **QUICK, **options)
    return [text for text in report.notices if "unlikely" in text]


def mislabel(victim, count):
    """Wrong labels on the samples of which the given model is surest, so that it cannot find them plausible."""
    clean = victim.clean
    with torch.no_grad():
        sure = TASK.log_likelihood(TASK.forward(victim.model.eval(), clean.inputs), clean.targets)
    wrong = sure.argsort(descending=True)[:count]
    targets = clean.targets.clone()
    targets[wrong] = (targets[wrong] + 1) % (int(clean.targets.max()) + 1)
    return Batch(clean.inputs, targets), wrong.tolist()


def test_mislabelled_samples_are_named(victim):
    clean, wrong = mislabel(victim, 5)
    (text,) = told(victim.model, clean)
    assert "look whether they are mislabelled" in text
    assert "used (drop_doubtful=True leaves them out)" in text
    listed = re.findall(r"sample (\d+)", text)
    assert set(map(str, wrong)) <= set(listed)


def test_mislabelled_samples_are_left_out_on_request(victim):
    """Fine-tuning sees exactly what it would see if they had never been there."""
    clean, wrong = mislabel(victim, 5)
    kept = torch.ones(len(clean), dtype=torch.bool)
    kept[doubtful(standing(victim.model, clean, TASK))] = False
    assert not kept[wrong].any()
    tuned, report = unbackdoor.purify(victim.model, clean, task=TASK, method="ft", steps=3, drop_doubtful=True)
    alone, _ = unbackdoor.purify(victim.model, clean[kept], task=TASK, method="ft", steps=3)
    assert any("left out" in text for text in report.notices)
    assert_close(list(tuned.parameters()), list(alone.parameters()), rtol=0, atol=0)


def test_labels_in_another_order_are_told(victim):
    classes = int(victim.clean.targets.max()) + 1
    with pytest.raises(PreflightFailed, match="right on 100 % if the classes are in another order"):
        told(victim.model, Batch(victim.clean.inputs, (victim.clean.targets + 1) % classes))


def test_samples_are_kept_where_the_labels_are_misread(victim):
    """With ``anyway`` nothing is dropped by labels that do not fit the model, and nothing is called mislabelled."""
    classes = int(victim.clean.targets.max()) + 1
    shifted = Batch(victim.clean.inputs, (victim.clean.targets + 1) % classes)
    assert told(victim.model, shifted, drop_doubtful=True, anyway=True) == []
    _, report = unbackdoor.purify(victim.model, shifted, task=TASK, method="ft", steps=2, anyway=True)
    assert len(report.overruled) == 1


@dataclass(frozen=True, kw_only=True)
class Noted(FT):
    """Fine-tuning that notes what it is tuned on."""

    steps: int = option(5, "optimiser steps")
    lr: float = option(3.0, "learning rate")
    tuned: ClassVar[Batch]

    def _purify(self, model, clean, task, run):
        Noted.tuned = clean.samples
        super()._purify(model, clean, task, run)


def test_report_tells_what_each_class_lost(victim):
    """Class 2 has no clean sample, so nothing is known of it; the others agree with a count by hand.

    The count is over the samples that were not tuned on.
    """
    kept = victim.clean[victim.clean.targets != 2]
    purified, report = unbackdoor.purify(victim.model, kept, task=TASK, method=Noted(), anyway=True)
    assert any(found["before"] != found["after"] for found in report.by_class.values())
    assert set(report.by_class) == {str(int(k)) for k in kept.targets.unique()}
    tuned = {tuple(row) for row in Noted.tuned.inputs.flatten(1).tolist()}
    kept = kept[torch.tensor([tuple(row) not in tuned for row in kept.inputs.flatten(1).tolist()])]
    for name, found in report.by_class.items():
        members = kept[kept.targets == int(name)]
        for model, when in ((victim.model, "before"), (purified, "after")):
            with torch.no_grad():
                right = model.eval()(members.inputs).argmax(1) == members.targets
            assert found["samples"] == len(members)
            assert found[when] == pytest.approx(100 * float(right.float().mean()))
