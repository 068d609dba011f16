"""A purified model that is worse than a stated bound never replaces the given one."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import pytest
import torch

import unbackdoor
from unbackdoor.defender.purifier import Purifier, option
from unbackdoor.errors import BadOption, Diverged, NonFinite, ResultRefused
from unbackdoor.registry import method as method_of
from unbackdoor.report import weight_hash
from unbackdoor.testing import ClassificationTask, tiny_victim

TASK = ClassificationTask()


@pytest.fixture(scope="module")
def victim():
    return tiny_victim()


@dataclass(frozen=True, kw_only=True)
class Harm(Purifier):
    """Forgets some classes: their outputs are never the largest."""

    name = "harm"
    forgotten: int = option(3, "how many classes are never answered any more")
    holdout: float = option(0.0, "share of clean samples that are held out")

    def _purify(self, model, clean, task, run):
        run.record(1, 1, "harming", loss=1.0)
        with torch.no_grad():
            model[-1].bias[: self.forgotten] -= 1000


@dataclass(frozen=True, kw_only=True)
class Breaks(Harm):
    """Ends with NaN in a weight."""

    name = "breaks"

    def _purify(self, model, clean, task, run):
        with torch.no_grad():
            model[-1].weight[0, 0] = torch.nan


@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_result_that_lost_too_much_is_refused_with_its_evidence(victim, holdout):
    model = copy.deepcopy(victim.model)
    before = weight_hash(model)
    with pytest.raises(ResultRefused, match=r"has lost 60.0 points .*max_loss=20") as caught:
        Harm(holdout=holdout).purify(model, victim.clean, TASK)
    assert weight_hash(model) == before
    report = caught.value.report
    assert report.after["accuracy"] == pytest.approx(40 if holdout else math.nan, nan_ok=True)
    assert report.hash_before == before != report.hash_after
    assert report.log
    assert "has lost 60.0 points" in report.overruled[0]


def test_result_at_chance_is_refused_whatever_may_be_lost(victim):
    with pytest.raises(ResultRefused, match="at chance: 30 of 150 answers right, where the given one has 150"):
        unbackdoor.purify(victim.model, victim.clean, task=TASK, method=Harm(forgotten=4), max_loss=100)


def test_refused_result_comes_back_on_request_and_says_so(victim):
    purified, report = unbackdoor.purify(victim.model, victim.clean, task=TASK, method=Harm(), anyway=True)
    assert float(purified[-1].bias.detach()[0]) < -900
    assert "has lost 60.0 points" in report.overruled[0]
    assert any("has lost 60.0 points" in text for text in report.notices)


def test_loss_within_the_bound_is_the_users_to_judge(victim):
    _, report = unbackdoor.purify(victim.model, victim.clean, task=TASK, method=Harm(forgotten=1), max_loss=25)
    assert report.overruled == ()
    with pytest.raises(ResultRefused):
        unbackdoor.purify(victim.model, victim.clean, task=TASK, method=Harm(forgotten=1), max_loss=15)


@pytest.mark.parametrize("anyway", [False, True])
def test_nan_is_refused_even_on_request(victim, anyway):
    model = copy.deepcopy(victim.model)
    before = weight_hash(model)
    with pytest.raises(Diverged, match="diverged") as caught:
        Breaks().purify(model, victim.clean, TASK, anyway=anyway)
    assert isinstance(caught.value, NonFinite)
    assert isinstance(caught.value, ResultRefused)
    assert weight_hash(model) == before


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fip", {"lr": 30.0}),
        ("sau", {"lr": 30.0}),
        ("fst", {"lr": 30.0}),
        ("fine-pruning", {"lr": 30.0}),
        ("awm", {"lr": 30.0}),
        ("ft", {"lr": 30.0}),
    ],
)
def test_method_that_diverges_is_refused_or_gives_the_given_model_back(victim, method, options):
    known = method_of(method).__dataclass_fields__
    quick = {name: value for name, value in {"steps": 8, "batch_size": 16, "rounds": 2}.items() if name in known}
    try:
        _, report = unbackdoor.purify(
            victim.model, victim.clean[torch.arange(0, 150, 4)], task=TASK, method=method, **quick, **options
        )
    except ResultRefused:
        return
    assert report.given_back
    assert report.hash_after == report.hash_before


def test_report_says_how_much_its_figures_rest_on(victim):
    _, report = unbackdoor.purify(victim.model, victim.clean, task=TASK, method="ft", steps=1)
    assert (report.evidence["samples"], report.evidence["classes"]) == (30, 5)
    low, high = report.evidence["after"]
    assert 0 < low <= report.after["accuracy"] <= high <= 100
    low, high = report.evidence["drop"]
    assert low <= report.before["accuracy"] - report.after["accuracy"] <= high
    assert high > 10, "thirty samples cannot rule out a loss of some points, however well they are answered"
    assert not any("say little" in text for text in report.notices)


def test_figures_of_one_class_are_not_told_as_if_they_were_measured(victim):
    """Fifteen samples of one class and one of another: what is held out is of the first."""
    first = (victim.clean.targets == 0).nonzero().flatten()[:15]
    other = (victim.clean.targets == 1).nonzero().flatten()[:1]
    lopsided = victim.clean[torch.cat([first, other])]
    _, report = unbackdoor.purify(victim.model, lopsided, task=TASK, method=Harm(forgotten=0, holdout=0.2), anyway=True)
    assert report.measured_on == "holdout"
    assert (report.evidence["samples"], report.evidence["classes"]) == (3, 1)
    assert report.evidence["after"][0] < 50
    assert any("3 samples of 1 of 2 classes" in text for text in report.notices)


def test_max_loss_is_a_number_of_points(victim):
    with pytest.raises(BadOption, match="max_loss"):
        unbackdoor.purify(victim.model, victim.clean, task=TASK, method="ft", steps=1, max_loss=-1)
