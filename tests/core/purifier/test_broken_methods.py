"""A method that breaks the model is caught."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.errors import (
    ModelChanged,
    NonFinite,
)
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


QUICK = {"steps": 2, "batch_size": 4}


def rename(model, run):
    model.extra = nn.Parameter(torch.zeros(1))


def retype(model, run):
    model[4].double()


def replace_layer(model, run):
    model[4] = type("Mine", (nn.Linear,), {})(8, 3)


def write_buffer(model, run):
    model[1].running_mean.add_(1.0)


def write_nan(model, run):
    with torch.no_grad():
        model[4].bias.fill_(math.nan)


def drop(model, run):
    del model[4].bias
    model[4].bias = None


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (rename, ModelChanged),
        (retype, ModelChanged),
        (replace_layer, ModelChanged),
        (write_buffer, ModelChanged),
        (drop, ModelChanged),
        (write_nan, NonFinite),
    ],
    ids=lambda value: value.__name__,
)
def test_purify_catches_a_method_that_breaks_the_model(clean, action, error, mlp, state_of, purifier_that):
    model = mlp()
    before = state_of(model)
    with pytest.raises(error):
        unbackdoor.purify(model, clean, task=TASK, method=purifier_that(action))
    assert_close(state_of(model), before, rtol=0, atol=0)
    if action in (write_buffer, write_nan):
        with pytest.raises(error):
            purifier_that(action).purify(model, clean, TASK)
        assert_close(state_of(model), before, rtol=0, atol=0)


def test_purify_in_place_names_the_methods_error_not_its_consequence(clean, mlp, purifier_that):
    with pytest.raises(ModelChanged, match="extra"):
        purifier_that(rename).purify(mlp(), clean, TASK)
