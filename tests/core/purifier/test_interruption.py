"""A purification that is interrupted or diverges leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.defender.methods.ft import FT
from unbackdoor.errors import (
    NonFinite,
)
from unbackdoor.registry import method, method_names
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


QUICK = {"steps": 2, "batch_size": 4}


class Extra(nn.Linear):
    """Keeps something beside tensors in its state."""

    def get_extra_state(self):
        return {"version": 2}

    def set_extra_state(self, state):
        assert state == {"version": 2}


def test_purify_takes_models_with_extra_state(clean):
    unbackdoor.purify(Extra(6, 3), clean, task=TASK, **QUICK)
    model = Extra(6, 3)
    before = model.weight.detach().clone()
    with pytest.raises(KeyboardInterrupt):
        FT(**QUICK).purify(model, clean, TASK, watch=interrupt)
    assert torch.equal(model.weight, before)


def interrupt(progress):
    raise KeyboardInterrupt


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", method_names())
def test_interrupted_purification_leaves_the_model_as_it_was(clean, name, dtype, training, mlp, state_of, quick):
    model = mlp().to(dtype).train(training)
    before, classes = state_of(model), [type(m) for m in model.modules()]
    purifier = method(name)(**quick(name, steps=40))
    with pytest.raises(KeyboardInterrupt):
        purifier.purify(model, clean, TASK, watch=interrupt)
    assert_close(state_of(model), before, rtol=0, atol=0)
    assert [type(m) for m in model.modules()] == classes
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training == training for m in model.modules())
    assert model[1].momentum == 0.1
    with pytest.raises(KeyboardInterrupt):
        unbackdoor.purify(model, clean, task=TASK, method=purifier, watch=interrupt)
    assert_close(state_of(model), before, rtol=0, atol=0)


def test_interrupted_purification_has_really_begun(clean, mlp):
    """The control: the weights had moved when the interruption came."""
    model, seen = mlp(), []

    def look(progress):
        seen.append(progress.model[4].weight.detach().clone())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FT(**QUICK).purify(model, clean, TASK, watch=look)
    assert not torch.equal(seen[0], model[4].weight)


def test_diverging_run_ends_in_an_error_and_leaves_the_model_as_it_was(clean, mlp, state_of):
    model = mlp()
    before = state_of(model)
    with pytest.raises(NonFinite):
        FT(steps=60, batch_size=4, lr=1e38, schedule="constant").purify(model, clean, TASK)
    assert_close(state_of(model), before, rtol=0, atol=0)
