"""The report, the holdout and the watcher."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

import unbackdoor
from unbackdoor.data import CleanSet
from unbackdoor.defender.methods.ft import FT
from unbackdoor.defender.purifier import Purifier, option
from unbackdoor.errors import (
    BadOption,
)
from unbackdoor.report import Report
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


QUICK = {"steps": 2, "batch_size": 4}


def test_report_comes_back_from_json(clean, mlp):
    _, report = unbackdoor.purify(mlp(), clean, task=TASK, **QUICK)
    assert Report.from_json(report.to_json()).to_json() == report.to_json()
    assert Report.from_json(report.to_json()) == report
    values = json.loads(report.to_json())
    assert values["total"] == sum(p.numel() for p in mlp().parameters())
    assert 0 < values["trainable"] < values["total"]
    assert values["seconds"] > 0
    assert {"python", "torch", "device"} <= set(values["versions"])


@dataclass(frozen=True, kw_only=True)
class Holds(Purifier):
    """A method that chooses something on a holdout."""

    name = "holds"
    holdout: float = option(0.25, "share of clean samples held out")

    def _purify(self, model, clean, task, run):
        run.notice(f"{len(clean)} + {0 if run.holdout is None else len(run.holdout)}")


def test_holdout_is_split_off_by_class_and_figures_are_measured_on_it(clean, mlp):
    _, report = unbackdoor.purify(mlp(), clean, task=TASK, method=Holds())
    assert report.notices == ("9 + 3",)
    assert report.measured_on == "holdout"
    _, report = unbackdoor.purify(mlp(), clean.samples[:1], task=TASK, method=Holds(), anyway=True)
    assert report.notices[1:] == ("1 + 0",)
    assert "could not be told from a good one" in report.notices[0]
    _, report = unbackdoor.purify(mlp(), clean, task=TASK, method=Holds(holdout=0.0))
    assert (report.notices, report.measured_on) == (("12 + 0",), "clean set")
    with pytest.raises(BadOption, match="holdout"):
        unbackdoor.purify(mlp(), clean, task=TASK, method=Holds(holdout=1.0))


@dataclass(frozen=True, kw_only=True)
class HoldsNone(Holds):
    """The same, of the methods that tune on sparse sets whole."""

    tunes_sparse = True


def test_nothing_is_held_out_where_it_would_be_all_that_is_known_of_its_class(clean, mlp):
    _, report = unbackdoor.purify(mlp(), clean.samples[:5], task=TASK, method=HoldsNone())
    assert report.notices[1:] == ("5 + 0",)
    assert "5 clean samples of 3 classes" in report.notices[0]
    _, other = unbackdoor.purify(mlp(), clean.samples[:5], task=TASK, method=Holds())
    assert not any("none was" in text for text in other.notices), "a method that does not say so holds out as ever"
    assert report.measured_on == "clean set"
    _, report = unbackdoor.purify(mlp(), clean.samples[:6], task=TASK, method=HoldsNone())
    assert "4 + 2" in report.notices
    held = report.evidence["classes"]  # two samples by chance
    assert held < 3
    assert any(f"2 samples of {held} of 3 classes" in text for text in report.notices)


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


@pytest.mark.parametrize("method", ["nft", "f-fip"])
def test_nft_and_f_fip_tune_on_sparse_sets_whole(clean, mlp, method):
    _, report = unbackdoor.purify(mlp(), clean.samples[:5], task=TASK, method=method, **QUICK)
    assert report.measured_on == "clean set"
    assert any("none was" in notice for notice in report.notices)
