"""Clean samples to tune on, to choose by and to report on: no sample and no group is in two parts."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch.testing import assert_close

import unbackdoor
from unbackdoor.data import CleanSet, GroupedBatch
from unbackdoor.defender.parts import parts_of
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.errors import BadOption
from unbackdoor.registry import method, method_names
from unbackdoor.report import Report, weight_hash
from unbackdoor.testing import ClassificationTask, tiny_victim

TASK = ClassificationTask()
SEEN: dict[str, list[torch.Tensor]] = {}


@pytest.fixture(scope="module")
def victim():
    return tiny_victim()


def ids(samples):
    return {tuple(row) for row in samples.inputs.flatten(1).tolist()}


@dataclass(frozen=True, kw_only=True)
class Tunes(Purifier):
    """Changes nothing but one weight, by a little, and keeps what it was given."""

    name = "tunes"
    harm: float = option(0.0, "how much the first class is silenced")

    def _purify(self, model, clean, task, run):
        SEEN["tune"], SEEN["choose"] = clean, run.holdout
        with torch.no_grad():
            model[-1].bias[0] -= self.harm


@dataclass(frozen=True, kw_only=True)
class Chooses(Tunes):
    """The same, of the methods that choose."""

    name = "chooses"
    max_clean_drop: float = option(3.0, "points that it may cost")


def run():
    return Run(torch.Generator().manual_seed(0), torch.device("cpu"), torch.nn.Identity())


def test_what_is_tuned_on_is_neither_chosen_by_nor_reported_on(victim):
    _, report = unbackdoor.purify(victim.model, victim.clean, task=TASK, method=Chooses())
    tune, choose = ids(SEEN["tune"].samples), ids(SEEN["choose"].samples)
    assert (len(SEEN["tune"]), len(SEEN["choose"]), report.evidence["samples"]) == (120, 20, 10)
    assert not tune & choose
    assert report.measured_on == "holdout"
    assert len(ids(victim.clean) - tune - choose) <= 10


def test_method_that_chooses_nothing_reports_on_all_that_is_held_out(victim):
    _, report = unbackdoor.purify(victim.model, victim.clean, task=TASK, method=Tunes())
    assert SEEN["choose"] is None
    assert (len(SEEN["tune"]), report.evidence["samples"]) == (120, 30)
    tuned = ids(SEEN["tune"].samples)
    unbackdoor.purify(victim.model, victim.clean, task=TASK, method=Chooses())
    assert ids(SEEN["tune"].samples) == tuned, "whether a method chooses does not change what it tunes on"


def test_method_that_tunes_on_nothing_chooses_by_all_that_is_not_reported_on(victim):
    parts = parts_of(CleanSet(victim.clean), TASK, run(), 0.2, tunes=False, chooses=True)
    assert parts.choose is parts.tune
    assert (len(parts.choose), len(parts.report)) == (120, 30)


@pytest.mark.parametrize("seed", range(4))
def test_no_film_is_in_two_parts(victim, seed):
    films = torch.arange(150) // 5  # samples of several classes in each
    clean = GroupedBatch.of(victim.clean, films)
    _, report = unbackdoor.purify(victim.model, clean, task=TASK, method=Chooses(), seed=seed)
    tune, choose = (set(SEEN[part].groups.tolist()) for part in ("tune", "choose"))
    assert not tune & choose
    assert report.evidence["groups"] == 30 - len(tune) - len(choose) > 0
    assert report.evidence["samples"] == 150 - len(SEEN["tune"]) - len(SEEN["choose"])


def test_films_stay_whole_where_doubtful_samples_are_left_out(victim):
    targets = victim.clean.targets.clone()
    targets[:3] = (targets[:3] + 1) % 5
    clean = GroupedBatch.of(replace(victim.clean, targets=targets), torch.arange(150) // 5)
    _, report = unbackdoor.purify(victim.model, clean, task=TASK, method=Chooses(drop_doubtful=True))
    tune, choose = (SEEN[part].groups.tolist() for part in ("tune", "choose"))
    assert len(tune) + len(choose) + report.evidence["samples"] < 150
    assert not set(tune) & set(choose)
    assert report.evidence["groups"] == 30 - len(set(tune)) - len(set(choose))


def test_samples_of_one_film_are_tuned_on_alone_and_the_report_says_so(victim):
    clean = GroupedBatch.of(victim.clean, torch.zeros(150, dtype=torch.long))
    _, report = unbackdoor.purify(victim.model, clean, task=TASK, method=Chooses())
    assert (len(SEEN["tune"]), SEEN["choose"]) == (150, None)
    assert report.measured_on == "not measured"
    assert any("all clean samples are of one group" in text for text in report.notices)
    assert any("no clean samples were held out to choose by" in text for text in report.notices)


def test_nothing_is_held_out_where_it_would_be_all_that_is_known_of_its_class(victim):
    few = torch.cat([(victim.clean.targets == label).nonzero().flatten()[: 1 + (label < 2)] for label in range(5)])
    _, report = unbackdoor.purify(victim.model, victim.clean[few], task=TASK, method=Tunes(), anyway=True)
    assert len(SEEN["tune"]) == 7
    assert any("7 clean samples of 5 classes" in text for text in report.notices)
    assert report.measured_on == "not measured"


@pytest.mark.parametrize(("holdout", "chosen"), [(0.25, None), (0.5, 2), (0.6, 2)])
def test_few_held_out_samples_choose_and_the_figures_are_left_out(victim, holdout, chosen):
    two = torch.cat([(victim.clean.targets == label).nonzero().flatten()[:2] for label in range(2)])
    _, report = unbackdoor.purify(
        victim.model, victim.clean[two], task=TASK, method=Chooses(holdout=holdout, max_clean_drop=100.0), anyway=True
    )
    assert (None if SEEN["choose"] is None else len(SEEN["choose"])) == chosen
    assert report.measured_on == "not measured"
    said = "none was held out" if chosen is None else "none to report on"
    assert any(said in text for text in report.notices)


@pytest.mark.parametrize("name", method_names())
def test_every_method_reports_on_samples_that_it_was_not_tuned_on(name):
    assert method(name)().holdout == 0.2


def test_figures_that_were_not_measured_are_no_numbers(victim):
    _, report = unbackdoor.purify(victim.model, victim.clean, task=TASK, method=Tunes(holdout=0.0))
    assert len(SEEN["tune"]) == 150
    assert report.measured_on == "not measured"
    assert math.isnan(report.before["accuracy"])
    assert math.isnan(report.after["accuracy"])
    assert report.by_class == {}
    assert report.evidence == {"samples": 0}
    assert json.loads(report.to_json())["after"] == {"accuracy": None}
    assert math.isnan(Report.from_json(report.to_json()).after["accuracy"])


def test_figures_are_those_of_the_part_that_nothing_was_chosen_by(victim):
    purified, report = unbackdoor.purify(
        victim.model, victim.clean, task=TASK, method=Chooses(harm=1000.0, max_clean_drop=100.0)
    )
    used = ids(SEEN["tune"].samples) | ids(SEEN["choose"].samples)
    rest = torch.tensor([tuple(row) not in used for row in victim.clean.inputs.flatten(1).tolist()])
    left = victim.clean[rest]
    right = (purified(left.inputs).argmax(1) == left.targets).double().mean()
    assert_close(report.after["accuracy"], float(100 * right))
    assert set(report.by_class) == set(map(str, left.targets.unique().tolist()))


def test_result_beyond_the_tolerance_gives_the_given_model_back_bit_for_bit(victim):
    before = weight_hash(victim.model)
    purified, report = unbackdoor.purify(victim.model, victim.clean, task=TASK, method=Chooses(harm=1000.0))
    assert report.given_back
    assert weight_hash(purified) == report.hash_after == report.hash_before == before
    assert report.after == report.before
    told = [text for text in report.notices if "the given model came back" in text]
    assert len(told) == 1
    assert "lost" in told[0]
    assert "max_clean_drop=3" in told[0]
    assert "--allow-drop" in told[0]


@pytest.mark.parametrize("words", [{"allow_drop": True}, {"anyway": True}])
def test_result_beyond_the_tolerance_is_kept_on_request_and_told(victim, words):
    purified, report = unbackdoor.purify(victim.model, victim.clean, task=TASK, method=Chooses(harm=1000.0), **words)
    assert not report.given_back
    assert report.hash_after != report.hash_before
    assert float(purified[-1].bias.detach()[0]) < -900
    assert any("the result lost" in text for text in report.overruled)


def test_method_that_chooses_nothing_has_no_tolerance(victim):
    _, report = unbackdoor.purify(victim.model, victim.clean, task=TASK, method=Tunes(harm=1000.0), max_loss=50)
    assert not report.given_back
    assert report.hash_after != report.hash_before


def test_half_precision_comes_back_bit_for_bit_too(victim):
    model = copy.deepcopy(victim.model).bfloat16()
    before = weight_hash(model)
    purified, report = unbackdoor.purify(model, victim.clean, task=TASK, method=Chooses(harm=1000.0))
    assert report.given_back
    assert weight_hash(purified) == before


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("anp", {"threshold": 0.999, "steps": 20, "lr": 1.0}),
        ("rnp", {"threshold": 1.0, "steps": 4}),
        ("sam", {"rounds": 1, "steps": 6, "lr": 30.0}),
        ("i-bau", {"levels": 1, "steps": 6, "lr": 30.0}),
        ("tsbd", {"rounds": 1, "steps": 6, "lr": 30.0}),
        ("fine-pruning", {"steps": 6, "lr": 30.0}),
        ("awm", {"rounds": 2, "steps": 8, "lr": 30.0}),
        ("clp", {"u": 0.01}),
    ],
)
def test_no_way_through_a_method_gives_a_model_beyond_the_tolerance_silently(victim, name, options):
    known = method(name).__dataclass_fields__
    given = {key: value for key, value in {"batch_size": 32, **options}.items() if key in known}
    _, report = unbackdoor.purify(victim.model, victim.clean, task=TASK, method=name, max_loss=100, **given)
    lost = report.before["accuracy"] - report.after["accuracy"]
    assert lost <= 3 or any("more than max_clean_drop" in text for text in report.notices)
    assert report.given_back == (report.hash_after == report.hash_before)


@pytest.mark.parametrize("holdout", [1.0, -0.1])
def test_a_share_outside_its_range_is_refused(victim, holdout):
    with pytest.raises(BadOption, match="holdout"):
        unbackdoor.purify(victim.model, victim.clean, task=TASK, method=Tunes(holdout=holdout))
