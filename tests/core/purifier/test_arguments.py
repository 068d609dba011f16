"""What `unbackdoor.purify` takes for a method, a task, a seed, and what it says to anything else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import unbackdoor
from unbackdoor.defender.methods.ft import FT
from unbackdoor.defender.purifier import Purifier
from unbackdoor.errors import BadOption, UnbackdoorError
from unbackdoor.testing.classification import ClassificationTask

TASK = ClassificationTask()
QUICK = {"steps": 1, "batch_size": 4}


class Shrink(Purifier):
    """Not complete: it writes no ``_purify``."""

    name = "shrink"


def test_a_class_is_taken_for_its_method_and_a_task():
    model, clean = nn.Linear(4, 3), (torch.rand(12, 4), torch.arange(12) % 3)
    _, report = unbackdoor.purify(model, clean, task=ClassificationTask, method=FT, anyway=True, **QUICK)
    assert (report.method, report.options["steps"]) == ("ft", 1)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"method": Shrink}, "method is the class Shrink, which is not complete"),
        ({"method": nn.Linear}, "method is the class Linear; give the name"),
        ({"method": 3}, "method is of type int; give the name"),
        ({"method": None}, "method is of type NoneType; give the name"),
        ({"method": "ftt"}, "Did you mean 'ft'"),
        ({"task": nn.Linear}, "task is the class Linear; give the name"),
        ({"task": None}, "task is of type NoneType; give the name"),
        ({"task": "imge"}, "no task 'imge'"),
        ({"preset": 3}, "no preset 3"),
        ({"preset": ["paper"]}, "no preset"),
        ({"preset": "papr"}, "Did you mean 'paper'"),
        ({"seed": "0"}, "seed is '0'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**70}, "seed is"),
        ({"watch": 3}, "watch is a int"),
        ({"clean": None}, "cannot read clean samples from NoneType"),
        ({"model": None}, "NoneType"),
        ({"method": "nft", "holdout": "much"}, "holdout is 'much'; it must be a number"),
        ({"momentum": float("nan")}, "momentum is nan; it must be a number"),
        ({"schedule": "linear"}, "schedule is 'linear'; it must be one of"),
        ({"method": FT(**QUICK), "steps": 3}, "give them to the Purifier itself"),
    ],
    ids=str,
)
def test_anything_else_is_refused_in_words(given, told):
    clean = (torch.rand(12, 4), torch.arange(12) % 3)
    words = {"model": nn.Linear(4, 3), "clean": clean, "task": TASK, "method": "ft", **given}
    with pytest.raises(UnbackdoorError) as refused:
        unbackdoor.purify(**words)
    assert told in str(refused.value)


def test_a_task_that_needs_options_is_asked_for_made():
    class Needy(ClassificationTask):
        def __init__(self, size: int) -> None:
            super().__init__()

    with pytest.raises(BadOption, match="Needy, which cannot be made without options"):
        unbackdoor.purify(nn.Linear(4, 3), (torch.rand(2, 4), torch.arange(2)), task=Needy)
