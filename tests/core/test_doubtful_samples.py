"""Clean samples are not believed blindly: wrong labels and a wrong reading of the inputs are told."""

from __future__ import annotations

import re

import pytest
import torch

import unbackdoor
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask, tiny_victim

TASK = ClassificationTask()
QUICK = {"steps": 2, "rounds": 1}


@pytest.fixture(scope="module")
def victim():
    return tiny_victim()


def told(model, clean):
    _, report = unbackdoor.purify(model, clean, task=TASK, method="nft", **QUICK)
    return [text for text in report.notices if "unlikely" in text]


def test_mislabelled_samples_are_named(victim):
    """Those of which the given model is surest, so that it cannot find the wrong label plausible."""
    clean = victim.clean
    with torch.no_grad():
        sure = TASK.log_likelihood(TASK.forward(victim.model.eval(), clean.inputs), clean.targets)
    wrong = sure.argsort(descending=True)[:5]
    targets = clean.targets.clone()
    targets[wrong] = (targets[wrong] + 1) % (int(clean.targets.max()) + 1)
    (text,) = told(victim.model, Batch(clean.inputs, targets))
    assert "look whether they are mislabelled" in text
    listed = re.findall(r"\d+", text.split("most of all of ")[1].split("(counted")[0].split(" and ")[0])
    assert set(map(str, wrong.tolist())) <= set(listed)


def test_labels_in_another_order_are_told(victim):
    classes = int(victim.clean.targets.max()) + 1
    (text,) = told(victim.model, Batch(victim.clean.inputs, (victim.clean.targets + 1) % classes))
    assert "order of the classes may be wrong" in text
