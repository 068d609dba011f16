"""Models that a purification refuses, and what it tells of them."""

from __future__ import annotations

import math
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.defender.methods.f_fip import FastFIP
from unbackdoor.defender.methods.ft import FT
from unbackdoor.defender.methods.nft import NFT
from unbackdoor.errors import (
    BadData,
    NonFinite,
    NothingTrainable,
    UnsupportedModel,
)
from unbackdoor.registry import method_names
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


QUICK = {"steps": 2, "batch_size": 4}


@pytest.mark.parametrize("given", [None, "model.pt", {"weight": torch.zeros(1)}, nn.Linear, lambda x: x])
def test_purify_refuses_what_is_no_module(given, clean):
    with pytest.raises(UnsupportedModel, match=r"give an nn\.Module"):
        unbackdoor.purify(given, clean, task=TASK)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["0.weight", "4.bias", "1.running_mean"])
def test_purify_names_damaged_weights_before_it_starts(clean, bad, where, mlp, state_of):
    model = mlp()
    model.state_dict()[where].view(-1)[0] = bad
    before = state_of(model)
    with pytest.raises(NonFinite, match=where):
        FT(**QUICK).purify(model, clean, TASK)
    assert_close(state_of(model), before, rtol=0, atol=0, equal_nan=True)


def test_purify_refuses_a_model_whose_outputs_are_not_finite(clean):
    class Divides(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 0.0

    with pytest.raises(NonFinite, match="outputs on clean inputs"):
        unbackdoor.purify(Divides(6, 3), clean, task=TASK)


def test_purify_tells_inputs_of_the_wrong_form_from_a_defect(clean, mlp):
    wider = Batch(torch.rand(8, 7), torch.arange(8) % 3)
    with pytest.raises(BadData, match=r"cannot take the clean samples, whose inputs are \(8, 7\)"):
        unbackdoor.purify(mlp(), wider, task=TASK, method="nft", **QUICK)


def test_purify_refuses_a_model_without_parameters(clean):
    with pytest.raises(NothingTrainable, match="no parameters"):
        unbackdoor.purify(nn.Sequential(nn.Flatten(), nn.ReLU()), clean, task=TASK)


@pytest.mark.parametrize("name", method_names())
def test_purify_refuses_a_model_whose_weights_are_all_frozen(clean, name, mlp):
    with pytest.raises(NothingTrainable, match="requires_grad=False"):
        unbackdoor.purify(mlp().requires_grad_(False), clean, task=TASK, method=name)


@pytest.mark.parametrize("method", [NFT(**QUICK), FastFIP(**QUICK)], ids=["nft", "f-fip"])
def test_purify_refuses_a_model_of_embeddings_alone(method):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 3)

        def forward(self, tokens):
            return self.embed(tokens).mean(1)

    clean = (torch.randint(0, 5, (6, 4)), torch.arange(6) % 3)
    model = Tokens()
    with pytest.raises(NothingTrainable, match=r"embeddings.*embed\.weight"):
        method.purify(model, clean, TASK)
    FT(**QUICK).purify(model, clean, TASK)


def test_purify_refuses_uninitialised_lazy_layers(clean):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(UnsupportedModel, match=r"lazy parameters: 0\.weight"):
        unbackdoor.purify(model, clean, task=TASK)
    model(clean.samples.inputs)
    unbackdoor.purify(model, clean, task=TASK, **QUICK)


def test_purify_refuses_quantised_models(clean):
    integers = nn.Linear(6, 3)
    integers.weight = nn.Parameter(torch.zeros(3, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModel, match="quantised weights: weight; dequantise"):
        unbackdoor.purify(integers, clean, task=TASK)
    packed = nn.Sequential(nn.Linear(6, 3))
    packed[0].register_buffer("qweight", torch.zeros(3, dtype=torch.int32))
    with pytest.raises(UnsupportedModel, match=r"0\.qweight"):
        unbackdoor.purify(packed, clean, task=TASK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = nn.Linear(6, 3)
        buffer.register_buffer("q", torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8))
    with pytest.raises(UnsupportedModel, match="quantised weights: q"):
        unbackdoor.purify(buffer, clean, task=TASK)


def test_purify_refuses_scripted_models(clean):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(6, 3))
    with pytest.raises(UnsupportedModel, match="TorchScript"):
        unbackdoor.purify(scripted, clean, task=TASK)


def test_purify_says_what_to_do_with_a_model_that_cannot_be_copied(clean, mlp):
    model = mlp()
    model.lock = threading.Lock()
    with pytest.raises(UnsupportedModel, match=r"(?s)copied.*lock"):
        unbackdoor.purify(model, clean, task=TASK, **QUICK)
    NFT(**QUICK).purify(model, clean, TASK)
