"""Models and samples of every form that a purification takes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

import unbackdoor
from unbackdoor.defender.methods.nft import NFT
from unbackdoor.errors import (
    BadData,
    NothingTrainable,
    UnsupportedModel,
    UnsupportedTask,
)
from unbackdoor.registry import method, method_names
from unbackdoor.report import weight_hash
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask, tiny_models

TASK = ClassificationTask()


QUICK = {"steps": 2, "batch_size": 4}


@pytest.mark.parametrize("name", method_names())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_purify_gives_a_model_back_in_its_own_precision(clean, name, dtype, mlp, quick):
    model = mlp().to(dtype)
    purified, report = unbackdoor.purify(model, clean, task=TASK, method=name, **quick(name))
    assert {v.dtype for v in purified.state_dict().values()} == {dtype, torch.int64}
    assert report.hash_before == weight_hash(model)
    assert bool(torch.isfinite(purified[0].weight).all())


def test_purify_in_half_precision_works_in_single_precision_and_rounds_once(clean, mlp, state_of):
    half, single = mlp().half(), mlp().half().float()
    NFT(**QUICK).purify(half, clean, TASK)
    NFT(**QUICK).purify(single, clean, TASK)
    assert_close(state_of(half), {n: v.to(half.state_dict()[n].dtype) for n, v in state_of(single).items()},
                 rtol=0, atol=0)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_purify_keeps_a_buffer_of_higher_precision(clean, dtype, mlp):
    """Position tables and counters are often float64; the weights decide the working precision."""
    model = mlp().to(dtype)
    model.register_buffer("table", torch.tensor([1 / 3], dtype=torch.float64))
    purified, _ = unbackdoor.purify(model, clean, task=TASK, **QUICK)
    assert torch.equal(purified.table, model.table)
    assert purified.table.dtype is torch.float64


def parametrised(model, how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "weight_norm":
            parametrizations.weight_norm(model[0])
        elif how == "spectral_norm":
            parametrizations.spectral_norm(model[0])
        elif how == "orthogonal":
            parametrizations.orthogonal(model[0])
        elif how == "old weight_norm":
            nn.utils.weight_norm(model[0])
        elif how == "old spectral_norm":
            nn.utils.spectral_norm(model[0])
        elif how == "pruned":
            prune.l1_unstructured(model[0], "weight", amount=0.5)
        else:
            prune.random_unstructured(model[0], "bias", amount=2)
            prune.l1_unstructured(model[0], "weight", amount=0.5)
            prune.l1_unstructured(model[0], "weight", amount=0.2)
    return model


NORMED = [
    "weight_norm",
    "spectral_norm",
    "orthogonal",
    "old weight_norm",
    "old spectral_norm",
    "pruned",
    "pruned twice",
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("how", NORMED)
def test_purify_writes_parametrised_weights_out_and_says_so(clean, how, training, mlp, purifier_that):
    model = parametrised(mlp(), how)
    model.eval()
    expected = model(clean.samples.inputs).detach()
    model.train(training)
    keys = list(model.state_dict())
    purified, report = unbackdoor.purify(model, clean, task=TASK, method=purifier_that(lambda model, run: None))
    assert list(model.state_dict()) == keys, "the given model must stay parametrised"
    assert any("keys changed" in text and "0.weight" in text for text in report.notices)
    assert set(purified.state_dict()) == set(mlp().state_dict())
    assert type(purified[0]) is nn.Linear
    assert isinstance(purified[0].weight, nn.Parameter)
    assert_close(purified.eval()(clean.samples.inputs).detach(), expected, rtol=1e-5, atol=1e-6)
    unbackdoor.purify(model, clean, task=TASK, **QUICK)


class Wrapper(nn.parallel.DistributedDataParallel):
    """Wraps as DistributedDataParallel does, without a process group."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module

    def forward(self, x):
        return self.module(x)

    def __getstate__(self):
        return self.__dict__

    def __setstate__(self, state):
        self.__dict__.update(state)


WRAPPERS = {
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "data-parallel": nn.DataParallel,
    "distributed": Wrapper,
    "nested": lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_purify_looks_through_wrappers(clean, name, mlp):
    plain, _ = unbackdoor.purify(mlp(), clean, task=TASK, **QUICK)
    wrapped = WRAPPERS[name](mlp())
    purified, _ = unbackdoor.purify(wrapped, clean, task=TASK, **QUICK)
    assert type(purified) is type(wrapped)
    assert list(purified.state_dict()) == list(wrapped.state_dict())
    assert_close(list(purified.state_dict().values()), list(plain.state_dict().values()), rtol=0, atol=0)


class Answers(nn.Module):
    """A network that answers with more than a tensor, or wants more than one."""

    def __init__(self, form):
        super().__init__()
        self.hidden, self.layer, self.form = nn.Linear(6, 8), nn.Linear(8, 3), form

    def forward(self, x, other=None):
        hidden = self.hidden(x if other is None else x + other).tanh()
        logits = self.layer(hidden)
        return {"tuple": (logits, x), "dict": {"logits": logits, "hidden": hidden}}.get(self.form, logits)


class FirstInput(ClassificationTask):
    """Says which of several inputs may be perturbed."""

    def perturbable(self, inputs):
        return inputs[0]


@pytest.mark.parametrize("form", ["tuple", "dict", "two inputs"])
@pytest.mark.parametrize("name", method_names())
def test_purify_takes_other_outputs_and_several_inputs_through_the_task(clean, form, name, quick, told):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, samples, task = Answers(form), clean.samples, TASK
    if form == "two inputs":
        samples = Batch((samples.inputs, samples.inputs * 2), samples.targets)
        if "perturbable" in method(name).needs:
            with pytest.raises(UnsupportedTask, match=f"the method '{name}' searches in input space"):
                unbackdoor.purify(model, samples, task=TASK, method=name, **quick(name))
            task = FirstInput()
    purified, report = unbackdoor.purify(model, samples, task=task, method=name, **quick(name))
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), purified.parameters(), strict=True))
    assert same == (told(report) or any("no BatchNorm" in text for text in report.notices))


REFUSALS = {
    "nad": (UnsupportedModel, "no features to compare"),
    "tsbd": (NothingTrainable, "no layer with neurons.*before its classifier"),
}
"""Methods about hidden layers; all others purify a network of one layer too."""


@pytest.mark.parametrize("name", method_names())
def test_network_of_one_layer_is_purified_or_refused_by_name(clean, name, state_of, quick):
    model = nn.Linear(6, 3)
    before = state_of(model)
    if name in REFUSALS:
        error, message = REFUSALS[name]
        with pytest.raises(error, match=message):
            unbackdoor.purify(model, clean, task=TASK, method=name, **quick(name))
        assert_close(state_of(model), before, rtol=0, atol=0)
    else:
        purified, _ = unbackdoor.purify(model, clean, task=TASK, method=name, **quick(name))
        assert bool(torch.isfinite(purified.weight).all())


def test_purify_says_what_a_wrong_output_is(clean):
    class Sums(nn.Linear):
        def forward(self, x):
            return super().forward(x).sum(0)

    with pytest.raises(BadData, match=r"for 12 inputs the model returned \(3,\).*Task\.forward"):
        unbackdoor.purify(Sums(6, 3), clean, task=TASK)


def test_purify_refuses_labels_that_the_task_refuses(clean, mlp):
    with pytest.raises(BadData, match="labels range beyond"):
        unbackdoor.purify(mlp(), (clean.samples.inputs, clean.samples.targets + 5), task=TASK)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", method_names())
def test_purify_runs_on_one_shot_sets_with_larger_batches(name, count, mlp, quick):
    batch = Batch(torch.rand(count, 6), torch.arange(count) % 3)
    purified, _ = unbackdoor.purify(mlp(), batch, task=TASK, method=name, anyway=True, **quick(name, batch_size=16))
    assert all(bool(torch.isfinite(v).all()) for v in purified.state_dict().values())


@pytest.mark.parametrize("source", ["generator", "loader"])
def test_purify_makes_one_pass_over_iterables(clean, source, mlp, state_of):
    pairs = [(clean.samples.inputs[i], int(clean.samples.targets[i])) for i in range(len(clean))]
    given = iter(pairs) if source == "generator" else torch.utils.data.DataLoader(pairs, batch_size=5)
    found, _ = unbackdoor.purify(mlp(), given, task=TASK, **QUICK)
    expected, _ = unbackdoor.purify(mlp(), clean, task=TASK, **QUICK)
    assert_close(state_of(found), state_of(expected), rtol=0, atol=0)


def test_purify_of_an_empty_loader_is_refused(mlp):
    with pytest.raises(BadData):
        unbackdoor.purify(mlp(), iter([]), task=TASK)


class Frozen(nn.Module):
    """Two hidden layers, each with BatchNorm; the first one is frozen."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()).requires_grad_(False)
        self.second = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x)))


@pytest.mark.parametrize("name", method_names())
def test_purify_respects_frozen_weights(clean, name, quick, told):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Frozen()
    words = {**quick(name), "holdout": 0.0}  # so few can only judge when all of them do
    purified, report = unbackdoor.purify(model, clean, task=TASK, method=name, allow_drop=True, **words)
    moved = []
    for (key, given), found in zip(model.named_parameters(), purified.parameters(), strict=True):
        assert found.requires_grad == given.requires_grad
        if not torch.equal(found, given):
            assert given.requires_grad, f"{key} was frozen"
            moved.append(key)
    changes_weights = report.trainable > 0 or method(name).discrete
    assert bool(moved) == (changes_weights and not told(report))


class TiedHead(nn.Module):
    """The last layer has the weight of the one before it."""

    def __init__(self):
        super().__init__()
        self.entry, self.hidden, self.head = nn.Linear(6, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.head.weight = self.hidden.weight

    def forward(self, x):
        return self.head(self.hidden(self.entry(x).tanh()).tanh())


@pytest.mark.parametrize("how", ["frozen", "tied"])
@pytest.mark.parametrize("name", method_names())
def test_only_methods_that_make_the_classifier_anew_refuse_one_that_is_frozen_or_tied(clean, name, how, mlp, quick):
    model = mlp() if how == "frozen" else TiedHead()
    if how == "frozen":
        model[4].requires_grad_(False)
    if "classifier" in method(name).needs:
        with pytest.raises(UnsupportedModel, match="requires_grad=False" if how == "frozen" else "tied"):
            unbackdoor.purify(model, clean, task=TASK, method=name, **quick(name))
        return
    purified, _ = unbackdoor.purify(model, clean, task=TASK, method=name, **quick(name))
    if how == "frozen":
        assert torch.equal(purified[4].weight, model[4].weight)
    else:
        assert purified.head.weight is purified.hidden.weight


def test_tsbd_refuses_a_model_whose_hidden_layers_are_frozen(clean, mlp):
    """It zeroes weights of hidden neurons."""
    model = mlp()
    model[0].requires_grad_(False)
    with pytest.raises(NothingTrainable, match="requires_grad=True before its classifier"):
        unbackdoor.purify(model, clean, task=TASK, method="tsbd", **QUICK)


class TiedFloats(nn.Module):
    """Two hidden layers with one weight; takes floats."""

    def __init__(self):
        super().__init__()
        self.entry, self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.second(self.first(self.entry(x).tanh()).tanh()).tanh())


@pytest.mark.parametrize("inputs", ["tokens", "floats"])
@pytest.mark.parametrize("name", method_names())
def test_purify_keeps_ties_and_user_state(clean, name, inputs, quick):
    tiny = tiny_models()["tied"]
    model, samples = (tiny.build(), tiny.batch()) if inputs == "tokens" else (TiedFloats(), clean.samples)
    model.note = {"epoch": 3}
    calls = []
    model.register_forward_hook(lambda module, args, out: calls.append(1))
    if inputs == "tokens" and "perturbable" in method(name).needs:
        with pytest.raises(UnsupportedTask, match=f"the method '{name}' searches in input space"):
            unbackdoor.purify(model, samples, task=TASK, method=name, **quick(name))
        return
    purified, _ = unbackdoor.purify(model, samples, task=TASK, method=name, **quick(name))
    if inputs == "tokens":
        assert purified.unembed.weight.data_ptr() == purified.embed.weight.data_ptr()
    assert purified.second.weight is purified.first.weight
    assert purified.note == {"epoch": 3}
    assert len(purified._forward_hooks) == 1
    assert calls
