"""A model and samples that do not fit each other stop a run before anything is tuned, and the cause is named."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import unbackdoor
from unbackdoor.defender.preflight.check import misfit
from unbackdoor.defender.preflight.standing import standing
from unbackdoor.errors import PreflightFailed
from unbackdoor.files.class_lists import LISTS, in_list
from unbackdoor.task import Batch, Reading
from unbackdoor.testing import ClassificationTask, tiny_victim

TASK = ClassificationTask()
CIFAR10 = LISTS["CIFAR-10"]
FT = {"task": TASK, "method": "ft", "steps": 2}


@pytest.fixture(scope="module")
def victim():
    return tiny_victim()


class Ten(nn.Module):
    """Ten outputs of which the input is the answer: right on a share of the samples."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(8.0))

    def forward(self, x):
        return self.scale * x


def answers(count=100, right=1.0, outputs=10):
    """One-hot inputs, so that `Ten` answers a share ``right`` of them with their class."""
    targets = torch.arange(count) % outputs
    wrong = torch.arange(count) >= right * count
    said = torch.where(wrong, (targets + 1 + torch.arange(count) // outputs % (outputs - 1)) % outputs, targets)
    return nn.functional.one_hot(said, outputs).float(), targets


def why(clean, model=None, task=TASK, labelled=True):
    model = Ten() if model is None else model
    return misfit(standing(model, clean, task), model, clean, task, labelled=labelled)


def without(gone, names, count=100, right=0.8):
    """Samples of all classes but one, labelled as a folder of class folders without it labels them."""
    inputs, targets = answers(count, right)
    kept = targets != gone
    targets = targets[kept] - (targets[kept] > gone).long()
    return Batch(inputs[kept], targets, None, tuple(name for place, name in enumerate(names) if place != gone))


@pytest.mark.parametrize("right", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("count", [20, 100, 1000])
def test_model_that_fits_is_not_accused(count, right):
    assert why(Batch(*answers(count, right))) is None
    assert why(Batch(*answers(count, right), classes=CIFAR10)) is None


@pytest.mark.parametrize("gone", [0, 4, 8])
def test_missing_class_is_named_where_the_others_are_of_a_known_data_set(gone):
    text = why(without(gone, CIFAR10))
    assert f"if {CIFAR10[gone]!r} (output {gone}) is missing among the classes" in text
    assert f"--data-option classes={','.join(CIFAR10)}" in text


@pytest.mark.parametrize("gone", [0, 4, 8])
def test_missing_class_of_unknown_names_is_placed_between_its_neighbours(gone):
    names = [f"kind{place}" for place in range(10)]
    text = why(without(gone, names, count=200))
    assert f"output {gone} (" in text
    for neighbour in {gone - 1, gone + 1} & set(range(10)):
        assert f"'kind{neighbour}'" in text


def test_three_of_ten_classes_are_placed():
    inputs, targets = answers(100, 0.9)
    kept = (targets == 3) | (targets == 5) | (targets == 8)
    labels = torch.tensor([-1, -1, -1, 0, -1, 1, -1, -1, 2, -1])[targets[kept]]
    text = why(Batch(inputs[kept], labels, None, ("cat", "dog", "ship")))
    assert f"classes={','.join(CIFAR10)}" in text


def test_names_that_are_aliases_are_known():
    assert in_list(("plane", "Car", "bird"))[0] == ("airplane", "automobile", "bird")
    assert in_list(("plane", "unicorn")) is None


def test_classes_in_another_order_are_told_with_the_likely_one():
    inputs, targets = answers(200, 0.9)
    order = torch.tensor([3, 1, 2, 0, 4, 9, 6, 7, 8, 5])
    names = [f"kind{place}" for place in range(10)]
    text = why(Batch(inputs, order[targets], None, tuple(names)))
    assert "if the classes are in another order" in text
    assert f"classes={','.join(names[place] for place in order.tolist())}" in text


@pytest.mark.parametrize("order", ["text", "number"])
def test_numbers_that_are_sorted_otherwise_are_told(order):
    inputs, targets = answers(240, 0.9, outputs=12)
    as_text = torch.tensor(sorted(range(12), key=str))
    labels = as_text[targets] if order == "text" else as_text.argsort()[targets]
    assert f"--data-option order={order}" in why(Batch(inputs, labels))


def test_names_in_alphabetical_order_are_told():
    inputs, targets = answers(200, 0.9)
    names = ("zebra", "ant", "yak", "bee", "wolf", "cow", "dove", "emu", "fox", "gnu")
    labels = torch.tensor([names.index(name) for name in sorted(names)])[targets]
    assert f"in alphabetical order: --data-option classes={','.join(sorted(names))}" in why(
        Batch(inputs, labels, None, names)
    )


def test_model_at_chance_stops_with_the_likely_causes():
    inputs, targets = answers(100, 0.1)
    text = why(Batch(inputs, targets))
    assert "the given model is right on 10 of 100 clean samples, no more than one that does not look" in text
    assert "mean, std" in text


def test_model_far_below_its_confidence_stops():
    assert "its own confidence promises 100%" in why(Batch(*answers(200, 0.3)))
    shy = Ten()
    shy.scale.data.fill_(1.0)
    assert why(Batch(*answers(200, 0.3)), shy) is None


def test_few_samples_say_nothing_of_chance():
    assert why(Batch(*answers(10, 0.1))) is None


def test_one_sided_samples_are_refused_by_methods_that_use_labels():
    inputs, targets = answers(20, 1.0)
    kept = torch.tensor([0] * 15 + [1])
    lopsided = Batch(inputs[kept], targets[kept], None, CIFAR10)
    assert "15 of the 16 clean samples are of 'airplane' (class 0)" in why(lopsided)
    assert why(lopsided, labelled=False) is None


def test_fewer_classes_than_outputs_are_refused_where_answers_do_not_show_which():
    inputs, targets = answers(12, 1.0)
    some = targets < 3
    text = why(Batch(inputs[some].roll(1, 1), targets[some], None, ("a", "b", "c")))
    assert "name 3 classes, but the model has 10 outputs" in text


def test_purify_stops_and_leaves_the_model_or_goes_on_with_a_notice(victim):
    classes = int(victim.clean.targets.max()) + 1
    wrong = Batch(victim.clean.inputs, (victim.clean.targets + 1) % classes)
    before = copy.deepcopy(victim.model.state_dict())
    with pytest.raises(PreflightFailed, match=r"another order.*anyway=True \(--anyway\)"):
        unbackdoor.purify(victim.model, wrong, **FT)
    assert all(torch.equal(value, before[name]) for name, value in victim.model.state_dict().items())
    _, report = unbackdoor.purify(victim.model, wrong, **FT, anyway=True)
    assert len(report.overruled) == 1
    assert "another order" in report.overruled[0]
    assert any("Gone on all the same" in text for text in report.notices)
    _, report = unbackdoor.purify(victim.model, victim.clean, **FT, anyway=True)
    assert report.overruled == ()


@dataclass(frozen=True)
class Shifted(ClassificationTask):
    """Pixels with something added; its readings are other shifts, one that the model cannot take among them."""

    shift: float = 0.0

    def forward(self, model, inputs):
        if self.shift == 99:
            raise KeyError("never")
        return super().forward(model, inputs + self.shift)

    def readings(self, clean):
        for shift in (99.0, -0.1, 0.0, 3.0):
            yield Reading(f"shift={shift}", replace(self, shift=shift), rare=shift == 3.0)


def test_reading_that_fits_beyond_doubt_is_named(victim):
    assert "with shift=0.0" in why(victim.clean, victim.model, Shifted(shift=2.0))
    assert why(victim.clean, victim.model, Shifted()) is None


def test_readings_that_could_not_be_sure_cost_no_pass():
    """Of ten wrong answers no other reading could win enough to be sure among thirty."""
    inputs, targets = answers(200, 0.95)
    seen = []

    class Counted(Shifted):
        def forward(self, model, given):
            seen.append(self.shift)
            return model(given)

        def readings(self, clean):
            return [Reading(f"shift={i}", replace(self, shift=float(i))) for i in range(1, 31)]

    assert why(Batch(inputs, targets), Ten(), Counted()) is None
    assert set(seen) == {0.0}


def test_slightly_better_reading_is_no_mistake(victim):
    """A few points more are what samples from elsewhere bring."""
    inputs, targets = answers(200, 0.75)

    class Little(Shifted):
        def forward(self, model, given):
            return model(given if self.shift else answers(len(given), 0.65)[0])

    assert why(Batch(inputs, targets), Ten(), Little()) is None
