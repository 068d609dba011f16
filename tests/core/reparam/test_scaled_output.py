"""Masks as the scale of a normalisation, on every PyTorch that is supported."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional
from torch.testing import assert_close

from unbackdoor.defender.reparam import NeuronMask, neuron_mask
from unbackdoor.testing import ClassificationTask, tiny_models


def test_a_normalisation_that_refuses_eps_0_is_not_given_it(monkeypatch):
    """PyTorch 2.11 does; 2.15 does not."""
    real = functional.batch_norm
    given = []

    def strict(*arguments, **words):
        if "eps" in words:
            given.append(words["eps"])
        return real(*arguments, **words)

    monkeypatch.setattr(neuron_mask, "_NARROW", 0)
    tiny = tiny_models()["conv-bn"]
    model, task, batch = tiny.build(), ClassificationTask(), tiny.batch(8)
    plain = task.forward(model, batch.inputs)
    with NeuronMask(model, partial(task.forward, model, batch.inputs)):
        monkeypatch.setattr(functional, "batch_norm", strict)
        masked = task.forward(model, batch.inputs)
    assert given
    assert min(given) > 0
    assert_close(masked, plain)
    assert torch.ones(1, dtype=torch.float64) + min(given) == 1
