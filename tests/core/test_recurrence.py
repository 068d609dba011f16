"""Recurrent layers in eval mode whose kernel can be differentiated in train mode alone, as cuDNN's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from unbackdoor.defender.methods.ft import FT
from unbackdoor.defender.methods.nft import NFT
from unbackdoor.defender.purifier import Purifier
from unbackdoor.network import readiness as room
from unbackdoor.network.readiness import differentiable_recurrence
from unbackdoor.testing import ClassificationTask, check_purifier, tiny_models


class Fussy(nn.LSTM):
    """Notes how it is called; refuses what cuDNN refuses: a call with a graph in eval mode."""

    calls: list[tuple[bool, float]]

    def forward(self, *args, **kwargs):
        self.calls.append((self.training, self.dropout))
        if torch.is_grad_enabled() and not self.training:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        return super().forward(*args, **kwargs)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = Fussy(4, 5, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(5, 3)
        self.lstm.calls = []

    def forward(self, x):
        return self.head(self.lstm(x)[0].mean(1))


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(room, "_on_cudnn", lambda layer: True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model().double().eval()


X = torch.randn(6, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_recurrence_in_eval_mode_has_a_gradient_and_computes_the_same(model):
    with torch.no_grad():
        expected = model(X)
    with pytest.raises(RuntimeError, match="training mode"):
        model(X)
    with differentiable_recurrence(model):
        found = model(X)
        found.sum().backward()
        with torch.no_grad():
            model(X)
    assert_close(found, expected, rtol=0, atol=1e-12)
    assert model.lstm.calls[-2:] == [(True, 0.0), (False, 0.5)]
    assert (model.lstm.training, model.lstm.dropout) == (False, 0.5)
    assert not model.lstm._forward_hooks
    assert not model.lstm._forward_pre_hooks


def test_recurrence_in_train_mode_keeps_its_dropout(model):
    model.train()
    with differentiable_recurrence(model):
        model(X)
    assert model.lstm.calls == [(True, 0.5)]


def test_recurrence_that_fails_is_as_it_was(model):
    with differentiable_recurrence(model), pytest.raises(RuntimeError, match="input"):
        model(X[..., :2])
    assert (model.lstm.training, model.lstm.dropout) == (False, 0.5)


@pytest.mark.parametrize("method", [NFT(steps=2, batch_size=4), FT(steps=2, batch_size=4)])
def test_methods_purify_a_recurrent_model_with_such_a_kernel(model, method: Purifier):
    before = copy.deepcopy(model.state_dict())
    report = method.purify(model, (X, torch.arange(6) % 3), ClassificationTask())
    assert report.hash_before != report.hash_after
    assert list(model.state_dict()) == list(before)


def test_methods_leave_no_hook_on_recurrent_layers():
    tiny = tiny_models()["lstm"]
    check_purifier(NFT(steps=2, batch_size=4), tiny.build(), tiny.batch(), ClassificationTask())
