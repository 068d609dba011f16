"""Perturbed inputs: what is added, the range, trees, and the refusal of tasks without a space to search in."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from unbackdoor.data import CleanSet
from unbackdoor.defender.input_space import InputSpace
from unbackdoor.defender.purifier import Purifier
from unbackdoor.errors import SingleClass, UnsupportedTask
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


class TwoInputs(ClassificationTask):
    """Floats and tokens together; the floats may be perturbed."""

    def perturbable(self, inputs: dict[str, Tensor]) -> Tensor:
        return inputs["x"]


class OneClassRefused(ClassificationTask):
    """Refuses labels that are all alike, as the task packages do."""

    def inspect(self, clean: Batch, outputs: Tensor) -> list[str]:
        if len(clean.targets.unique()) == 1:
            raise SingleClass("all samples are of one class.")
        return []


@dataclass(frozen=True, kw_only=True)
class Nothing(Purifier):
    name = "nothing"

    def _purify(self, model, clean, task, run):
        pass


class Searches(Nothing):
    name = "searches"
    needs = ("classes", "perturbable")


class DataFree(Nothing):
    name = "data-free"
    needs = ()


def test_perturbation_is_added_and_cut_to_the_range_of_the_clean_samples() -> None:
    inputs = torch.tensor([[-2.0, 0.0], [1.0, 3.0]])
    space = InputSpace.of(TASK, CleanSet(Batch(inputs, torch.tensor([0, 1]))))
    assert (space.low, space.high, space.shape) == (-2.0, 3.0, (2,))
    delta = torch.tensor([[1.0, -5.0]], requires_grad=True)
    moved = space.add(inputs, delta)
    assert_close(moved, torch.tensor([[-1.0, -2.0], [2.0, -2.0]]))
    moved.sum().backward()
    assert_close(delta.grad, torch.tensor([[2.0, 0.0]]))  # none where the range cuts
    assert_close(space.add(inputs, space.zeros()), inputs)


def test_perturbation_goes_into_its_place_in_a_tree() -> None:
    inputs = {"x": torch.rand(3, 4), "tokens": torch.arange(3)}
    space = InputSpace.of(TwoInputs(), CleanSet(Batch(inputs, torch.arange(3))))
    moved = space.add(inputs, space.zeros(3) + 0.1)
    assert moved["tokens"] is inputs["tokens"]
    assert_close(moved["x"], (inputs["x"] + 0.1).clamp(space.low, space.high))


def test_a_space_that_is_no_part_of_the_inputs_is_refused() -> None:
    class Copies(TwoInputs):
        def perturbable(self, inputs: dict[str, Tensor]) -> Tensor:
            return inputs["x"].clone()

    with pytest.raises(UnsupportedTask, match="not itself a part"):
        InputSpace.of(Copies(), CleanSet(Batch({"x": torch.rand(3, 4)}, torch.arange(3))))


def test_a_method_that_searches_refuses_inputs_without_floats_by_name() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3))
    batch = Batch(torch.randint(0, 5, (6, 2), generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3)
    with pytest.raises(UnsupportedTask, match=r"'searches' searches in input space.*Use a method"):
        Searches().purify(model, batch, TASK)
    Nothing().purify(model, batch, TASK)


def test_one_class_is_refused_where_labels_are_tuned_on_and_told_elsewhere() -> None:
    batch = Batch(torch.rand(6, 4), torch.zeros(6, dtype=torch.long))
    with pytest.raises(SingleClass, match="one class"):
        Nothing().purify(nn.Linear(4, 3), batch, OneClassRefused())
    report = DataFree().purify(nn.Linear(4, 3), batch, OneClassRefused())
    assert "'data-free' tunes on no label" in report.notices[0]
