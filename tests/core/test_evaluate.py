"""What cannot be measured is refused: a figure of a broken model looks like any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unbackdoor
from unbackdoor.attacker.attack import Attack
from unbackdoor.errors import BadData, BadOption, NonFinite, UnbackdoorError, UnsupportedModel
from unbackdoor.task import Batch
from unbackdoor.testing.classification import ClassificationTask

TASK = ClassificationTask()


class Corner(Attack):
    name = "corner"

    def trigger(self, inputs: Any, generator: torch.Generator | None = None) -> Any:
        return inputs.clone()


class Answers(nn.Module):
    """Gives the same row of logits for every sample."""

    def __init__(self, *row: float) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(len(row)))
        self.given = torch.tensor(row)

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.row + self.given).expand(len(inputs), -1)


@pytest.fixture
def samples() -> Batch:
    return Batch(torch.rand(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "2.bias"])
def test_weights_and_statistics_that_are_nan_are_refused(model, samples, name):
    model.state_dict()[name][0] = float("nan")
    with pytest.raises(NonFinite, match=f"hold NaN or infinity \\({name}\\)"):
        unbackdoor.evaluate(model, samples, TASK)


def test_infinite_weights_are_refused(model, samples):
    model.state_dict()["0.weight"][0] = float("inf")
    with pytest.raises(NonFinite, match="weights hold"):
        unbackdoor.evaluate(model, samples, TASK)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("attack", [None, Corner(num_classes=3)])
def test_answers_that_are_nan_are_refused(samples, value, attack):
    with pytest.raises(NonFinite, match="answers hold NaN"):
        unbackdoor.evaluate(Answers(0.0, value, 1.0), samples, TASK, attack)


def test_a_class_that_is_ruled_out_is_an_honest_answer(samples):
    """Minus infinity is the logit of a class that a model never gives."""
    figures = unbackdoor.evaluate(Answers(1.0, float("-inf"), 0.0), samples, TASK)
    assert figures["accuracy"] == pytest.approx(100 / 3)


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_labels_that_no_answer_can_have_are_refused(model, samples, label):
    samples.targets[4] = label
    with pytest.raises(BadData, match=r"labels range beyond 0\.\.2"):
        unbackdoor.evaluate(model, samples, TASK)


def test_samples_of_one_class_can_be_measured(samples):
    figures = unbackdoor.evaluate(Answers(0.0, 1.0, 0.0), Batch(samples.inputs, torch.ones(6, dtype=torch.long)), TASK)
    assert figures["accuracy"] == 100.0


class Undefined:
    def update(self, outputs: Any, targets: Any) -> None:
        """Nothing can be said."""

    def compute(self) -> float:
        return float("nan")


class Odd(ClassificationTask):
    def meters(self) -> Mapping[str, Any]:
        return {**super().meters(), "oddity": Undefined()}


def test_a_metric_that_is_not_defined_is_refused_by_name(model, samples):
    with pytest.raises(NonFinite, match="the metric oddity is not defined on these 6 samples"):
        unbackdoor.evaluate(model, samples, Odd())


def test_samples_that_cannot_show_the_attack_give_no_success_rate(model, samples):
    """All of the wanted class: once the ASR was 0."""
    only = Batch(samples.inputs, torch.zeros(6, dtype=torch.long))
    with pytest.raises(BadData, match="none of the 6 samples can show whether the attack 'corner' works"):
        unbackdoor.evaluate(model, only, TASK, Corner(num_classes=3))


def test_pairs_and_classes_of_tasks_are_taken_as_by_purify(model, samples):
    expected = unbackdoor.evaluate(model, samples, TASK)
    assert unbackdoor.evaluate(model, (samples.inputs, samples.targets), ClassificationTask) == expected


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"model": None}, UnsupportedModel),
        ({"model": nn.Flatten()}, UnsupportedModel),
        ({"model": nn.Linear(9, 3)}, BadData),
        ({"model": nn.Sequential(nn.Linear(4, 3), nn.Flatten(0))}, BadData),
        ({"data": None}, BadData),
        ({"task": 3}, BadOption),
        ({"task": "clasification"}, UnbackdoorError),
        ({"attack": Corner}, BadOption),
        ({"batch_size": 0}, BadOption),
        ({"seed": -1}, BadOption),
    ],
    ids=str,
)
def test_arguments_of_another_kind_are_refused_in_words(model, samples, given, error):
    with pytest.raises(error):
        unbackdoor.evaluate(**{"model": model, "data": samples, "task": TASK, **given})


def test_the_model_is_left_without_a_hook(model, samples):
    unbackdoor.evaluate(model, samples, TASK)
    assert not model._forward_hooks
