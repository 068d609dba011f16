"""The report, the holdout and the watcher."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch.testing import assert_close

import unbackdoor
from unbackdoor.data import CleanSet
from unbackdoor.defender.methods.ft import FT
from unbackdoor.report import Report
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


QUICK = {"steps": 2, "batch_size": 4}


@pytest.mark.parametrize("holdout", [0.0, 0.4])
def test_report_comes_back_from_json(clean, mlp, holdout):
    _, report = unbackdoor.purify(mlp(), clean, task=TASK, holdout=holdout, **QUICK)
    assert Report.from_json(report.to_json()).to_json() == report.to_json()
    assert Report.from_json(report.to_json()) == report
    values = json.loads(report.to_json())
    assert values["total"] == sum(p.numel() for p in mlp().parameters())
    assert 0 < values["trainable"] <= values["total"]
    assert values["seconds"] > 0
    assert {"python", "torch", "device"} <= set(values["versions"])


def test_watcher_sees_the_model_as_it_is_and_cannot_stop_by_what_it_returns(clean, mlp):
    told = []

    def watch(progress):
        told.append((progress.step, progress.steps, copy.deepcopy(progress.model)(clean.samples.inputs).detach()))
        return True

    frozen = FT(steps=40, batch_size=4, bn="frozen")
    purified, report = unbackdoor.purify(mlp().eval(), clean, task=TASK, method=frozen, watch=watch)
    assert told[-1][:2] == (40, 40)
    assert len(told) == len(report.log)
    assert_close(told[-1][2], purified(clean.samples.inputs).detach(), rtol=1e-5, atol=1e-5)
    assert not torch.equal(told[0][2], told[-1][2])


def test_clean_set_on_the_way_is_neither_changed_nor_kept(clean, mlp):
    before = clean.samples.inputs.clone()
    unbackdoor.purify(mlp(), CleanSet(clean.samples), task=TASK, **QUICK)
    assert torch.equal(clean.samples.inputs, before)
