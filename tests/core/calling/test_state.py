"""What a model carries beside weights: buffers that its forward moves, further state, hooks of state dicts."""

from __future__ import annotations

import copy
import math
from itertools import product

import pytest
import torch
from torch import nn

import unbackdoor
from unbackdoor.defender.methods.ft import FT
from unbackdoor.errors import NonFinite
from unbackdoor.network.signature import Kept
from unbackdoor.report import weight_hash
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


class Counts(nn.Module):
    """Counts its calls, keeps a mean of its inputs and a cache that is made at the first call."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("table", None)

    def forward(self, x):
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        if self.table is None:
            self.table = torch.ones(8)
        return self.head(self.inner(x).relu() * self.table)


class StaysInTraining(nn.BatchNorm1d):
    """BatchNorm whose owner wants it in train mode always."""

    def train(self, mode=True):
        return super().train(True)


class Masked(nn.Module):
    """Carries a mask of minus infinity, as decoders do."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)
        self.register_buffer("mask", torch.full((3,), -math.inf).index_fill(0, torch.arange(3), 0.0))
        self.register_buffer("causal", torch.full((4, 4), -math.inf).triu(1))

    def forward(self, x):
        return self.inner(x) + self.mask + self.causal.diagonal().sum()


class Scaled(nn.Module):
    """Has a scale in its further state, which is no buffer."""

    def __init__(self):
        super().__init__()
        self.inner, self.head, self.scale = nn.Linear(6, 8), nn.Linear(8, 3), {"by": 3.0, "shift": torch.ones(3)}

    def get_extra_state(self):
        return self.scale

    def set_extra_state(self, state):
        self.scale = state

    def forward(self, x):
        return self.head(self.inner(x).tanh()) * self.scale["by"] + self.scale["shift"]


class Renamed(nn.Module):
    """Shows its weights under other names, halved, and reads them back; what it shows are copies."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_state_dict_post_hook(_halved)
        self.register_load_state_dict_pre_hook(_doubled)

    def forward(self, x):
        return self.head(self.inner(x).tanh())


def _halved(module, state, prefix, metadata):
    for name in list(state):
        state[f"half.{name}"] = state.pop(name) / 2


def _doubled(module, state, prefix, *others):
    for name in list(state):
        state[name.removeprefix("half.")] = state.pop(name) * 2


def in_training():
    return nn.Sequential(nn.Linear(6, 8), StaysInTraining(8), nn.ReLU(), nn.Linear(8, 3))


METHODS = ["anp", "fine-pruning", "ft", "nft", "sam"]
MODELS = {"counts": Counts, "training": in_training, "masked": Masked, "scaled": Scaled, "renamed": Renamed}


def made(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name]().eval()


@pytest.mark.parametrize(("name", "method"), [*product(MODELS, METHODS), ("training", "bn-only")])
def test_every_method_takes_such_a_model_and_brings_back_all_but_weights(clean, name, method, quick):
    model = made(name)
    buffers = {key: None if b is None else b.clone() for m in model.modules() for key, b in m._buffers.items()}
    found, _ = unbackdoor.purify(model, clean, task=TASK, method=method, anyway=True, **quick(method))
    for key, value in ((key, b) for m in found.modules() for key, b in m._buffers.items()):
        if name == "training" and method in ("bn-only", "ft"):
            continue  # these estimate running statistics afresh
        assert (value is None and buffers[key] is None) or torch.equal(value, buffers[key]), key
    assert list(found.state_dict()) == list(model.state_dict())
    if name == "scaled":
        assert found.scale["by"] == 3.0
        assert found.scale is not model.scale


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_place_comes_back_bit_for_bit_after_an_error(clean, name):
    model = made(name)
    twin = copy.deepcopy(model)

    def watch(progress):
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.zero_()
        if name == "scaled":
            model.scale = {"by": 0.0, "shift": torch.zeros(3)}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FT(steps=4, batch_size=4, bn="frozen").purify(model, clean, TASK, watch=watch, anyway=True)
    for one, other in zip((*model.parameters(), *model.buffers()), (*twin.parameters(), *twin.buffers()), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(model(clean.samples.inputs), twin(clean.samples.inputs))


@pytest.mark.parametrize("name", ["counts", "training"])
def test_measuring_leaves_buffers_that_a_forward_moves(clean, name):
    model = made(name)
    before = {key: None if b is None else b.clone() for m in model.modules() for key, b in m._buffers.items()}
    unbackdoor.evaluate(model, clean.samples, TASK)
    for key, value in ((key, b) for m in model.modules() for key, b in m._buffers.items()):
        assert (value is None and before[key] is None) or torch.equal(value, before[key]), key


def test_a_buffer_that_a_method_moves_is_still_its_fault(clean):
    model = made("counts")
    model.register_buffer("other", torch.zeros(3))
    kept = Kept.of(model)

    def probe():
        return model(clean.samples.inputs)

    probe()
    model.other += 1
    kept.settle(probe, norms=False)
    assert kept.own == {"calls", "mean", "table"}
    assert (int(model.calls), model.table, float(model.other.sum())) == (0, None, 3.0)
    kept.restore()
    assert float(model.other.sum()) == 0


@pytest.mark.parametrize(("where", "value"), [("mask", math.nan), ("causal", math.nan), ("inner.weight", -math.inf)])
def test_what_is_damaged_is_refused(clean, where, value):
    model = made("masked")
    model.state_dict()[where].view(-1)[0] = value
    with pytest.raises(NonFinite, match=where):
        unbackdoor.purify(model, clean, task=TASK, method="ft", anyway=True)


def test_further_state_counts_in_the_hash():
    model = made("scaled")
    before = weight_hash(model)
    assert weight_hash(copy.deepcopy(model)) == before
    model.scale["by"] = 2.0
    other = weight_hash(model)
    model.scale["shift"][0] = 2.0
    assert len({before, other, weight_hash(model)}) == 3


@pytest.mark.parametrize("method", ["ft", "fip", "sam", "nft", "f-fip", "fst"])
def test_tables_with_sparse_gradients_are_tuned(method, quick):
    class Tokens(nn.Module):
        def __init__(self, sparse):
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 6, sparse=sparse), nn.Linear(6, 3)
            self.bag = nn.EmbeddingBag(9, 6, sparse=sparse) if method != "fip" else None  # it has no second derivative

        def forward(self, tokens):
            looked_up = self.embed(tokens).mean(1)
            return self.head(looked_up if self.bag is None else looked_up + self.bag(tokens))

    def one(sparse):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Tokens(sparse)

    tokens = torch.randint(0, 9, (12, 4), generator=torch.Generator().manual_seed(0))
    batch = (tokens, torch.arange(12) % 3)
    found, _ = unbackdoor.purify(one(True), batch, task=TASK, method=method, anyway=True, **quick(method))
    expected, _ = unbackdoor.purify(one(False), batch, task=TASK, method=method, anyway=True, **quick(method))
    for key, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    assert found.embed.sparse
    assert found.bag is None or found.bag.sparse
