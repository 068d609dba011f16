"""What a purification accepts, refuses, keeps and gives back, on bad input of every kind."""

from __future__ import annotations

import copy
import json
import math
import threading
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.testing import assert_close

import unbackdoor
from unbackdoor.data import CleanSet
from unbackdoor.errors import (
    BadData,
    BadOption,
    ModelChanged,
    NonFinite,
    NothingTrainable,
    UnbackdoorError,
    UnknownName,
    UnsupportedModel,
)
from unbackdoor.methods.bn_only import BNOnly
from unbackdoor.methods.f_fip import FastFIP
from unbackdoor.methods.fip import FIP
from unbackdoor.methods.ft import FT
from unbackdoor.methods.nft import NFT
from unbackdoor.purifier import Purifier, option
from unbackdoor.registry import method, method_names
from unbackdoor.report import Report, weight_hash
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask, tiny_models

TASK = ClassificationTask()
QUICK = {"steps": 2, "batch_size": 4}


def mlp(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)]
        return nn.Sequential(*layers)


def state_of(model):
    return {n: v.detach().clone() for n, v in model.state_dict().items()}


@dataclass(frozen=True, kw_only=True)
class Custom(Purifier):
    """Runs whatever a test gives it."""

    name = "custom"
    action = None

    def _purify(self, model, clean, task, run):
        type(self).action(model, run)


def purifier_that(action):
    return type("Custom", (Custom,), {"action": staticmethod(action)})()


# --------------------------------------------------------------------------------------- models refused


@pytest.mark.parametrize("given", [None, "model.pt", {"weight": torch.zeros(1)}, nn.Linear, lambda x: x])
def test_purify_refuses_what_is_no_module(given, clean):
    with pytest.raises(UnsupportedModel, match=r"give an nn\.Module"):
        unbackdoor.purify(given, clean, task=TASK)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["0.weight", "4.bias", "1.running_mean"])
def test_purify_names_damaged_weights_before_it_starts(clean, bad, where):
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


def test_purify_tells_inputs_of_the_wrong_form_from_a_defect(clean):
    wider = Batch(torch.rand(8, 7), torch.arange(8) % 3)
    with pytest.raises(BadData, match=r"cannot take the clean samples, whose inputs are \(8, 7\)"):
        unbackdoor.purify(mlp(), wider, task=TASK, method="nft", **QUICK)


def test_purify_refuses_a_model_without_parameters(clean):
    with pytest.raises(NothingTrainable, match="no parameters"):
        unbackdoor.purify(nn.Sequential(nn.Flatten(), nn.ReLU()), clean, task=TASK)


@pytest.mark.parametrize("name", method_names())
def test_purify_refuses_a_model_whose_weights_are_all_frozen(clean, name):
    with pytest.raises(NothingTrainable, match="requires_grad=False"):
        unbackdoor.purify(mlp().requires_grad_(False), clean, task=TASK, method=name)


@pytest.mark.parametrize("kind", [NFT, FastFIP])
def test_purify_refuses_a_model_of_embeddings_alone(kind):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 3)

        def forward(self, tokens):
            return self.embed(tokens).mean(1)

    clean = (torch.randint(0, 5, (6, 4)), torch.arange(6) % 3)
    model = Tokens()
    with pytest.raises(NothingTrainable, match=r"embeddings.*embed\.weight"):
        kind(**QUICK).purify(model, clean, TASK)
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


def test_purify_says_what_to_do_with_a_model_that_cannot_be_copied(clean):
    model = mlp()
    model.lock = threading.Lock()
    with pytest.raises(UnsupportedModel, match=r"(?s)copied.*lock"):
        unbackdoor.purify(model, clean, task=TASK, **QUICK)
    NFT(**QUICK).purify(model, clean, TASK)


# -------------------------------------------------------------------------------------- models accepted


@pytest.mark.parametrize("name", method_names())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_purify_gives_a_model_back_in_its_own_precision(clean, name, dtype):
    model = mlp().to(dtype)
    purified, report = unbackdoor.purify(model, clean, task=TASK, method=name, **QUICK)
    assert {v.dtype for v in purified.state_dict().values()} == {dtype, torch.int64}
    assert report.hash_before == weight_hash(model)
    assert bool(torch.isfinite(purified[0].weight).all())


def test_purify_in_half_precision_works_in_single_precision_and_rounds_once(clean):
    half, single = mlp().half(), mlp().half().float()
    NFT(**QUICK).purify(half, clean, TASK)
    NFT(**QUICK).purify(single, clean, TASK)
    assert_close(state_of(half), {n: v.to(half.state_dict()[n].dtype) for n, v in state_of(single).items()},
                 rtol=0, atol=0)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_purify_keeps_a_buffer_of_higher_precision(clean, dtype):
    """Position tables and counters are often float64; the weights decide the working precision."""
    model = mlp().to(dtype)
    model.register_buffer("table", torch.tensor([1 / 3], dtype=torch.float64))
    purified, _ = unbackdoor.purify(model, clean, task=TASK, **QUICK)
    assert torch.equal(purified.table, model.table)
    assert purified.table.dtype is torch.float64


def parametrised(how):
    model = mlp()
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
def test_purify_writes_parametrised_weights_out_and_says_so(clean, how, training):
    model = parametrised(how)
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
def test_purify_looks_through_wrappers(clean, name):
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
        self.layer, self.form = nn.Linear(6, 3), form

    def forward(self, x, other=None):
        logits = self.layer(x if other is None else x + other)
        return {"tuple": (logits, x), "dict": {"logits": logits, "hidden": x}}.get(self.form, logits)


@pytest.mark.parametrize("form", ["tuple", "dict", "two inputs"])
@pytest.mark.parametrize("name", method_names())
def test_purify_takes_other_outputs_and_several_inputs_through_the_task(clean, form, name):
    model, samples = Answers(form), clean.samples
    if form == "two inputs":
        samples = Batch((samples.inputs, samples.inputs * 2), samples.targets)
    unbackdoor.purify(model, samples, task=TASK, method=name, **QUICK)


def test_purify_says_what_a_wrong_output_is(clean):
    class Sums(nn.Linear):
        def forward(self, x):
            return super().forward(x).sum(0)

    with pytest.raises(BadData, match=r"for 12 inputs the model returned \(3,\).*Task\.forward"):
        unbackdoor.purify(Sums(6, 3), clean, task=TASK)


def test_purify_refuses_labels_that_the_task_refuses(clean):
    with pytest.raises(BadData, match="labels range beyond"):
        unbackdoor.purify(mlp(), (clean.samples.inputs, clean.samples.targets + 5), task=TASK)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", method_names())
def test_purify_runs_on_one_shot_sets_with_larger_batches(name, count):
    batch = Batch(torch.rand(count, 6), torch.arange(count) % 3)
    purified, _ = unbackdoor.purify(mlp(), batch, task=TASK, method=name, steps=2, batch_size=16)
    assert all(bool(torch.isfinite(v).all()) for v in purified.state_dict().values())


@pytest.mark.parametrize("source", ["generator", "loader"])
def test_purify_makes_one_pass_over_iterables(clean, source):
    pairs = [(clean.samples.inputs[i], int(clean.samples.targets[i])) for i in range(len(clean))]
    given = iter(pairs) if source == "generator" else torch.utils.data.DataLoader(pairs, batch_size=5)
    found, _ = unbackdoor.purify(mlp(), given, task=TASK, **QUICK)
    expected, _ = unbackdoor.purify(mlp(), clean, task=TASK, **QUICK)
    assert_close(state_of(found), state_of(expected), rtol=0, atol=0)


def test_purify_of_an_empty_loader_is_refused():
    with pytest.raises(BadData):
        unbackdoor.purify(mlp(), iter([]), task=TASK)


@pytest.mark.parametrize("name", method_names())
def test_purify_respects_frozen_weights(clean, name):
    model = mlp()
    model[0].requires_grad_(False)
    purified, _ = unbackdoor.purify(model, clean, task=TASK, method=name, **QUICK)
    assert torch.equal(purified[0].weight, model[0].weight)
    assert not purified[0].weight.requires_grad
    assert purified[4].weight.requires_grad
    if name != "bn-only":
        assert not torch.equal(purified[4].weight, model[4].weight)


@pytest.mark.parametrize("name", method_names())
def test_purify_keeps_ties_and_user_state(name):
    tiny = tiny_models()["tied"]
    model = tiny.build()
    model.note = {"epoch": 3}
    calls = []
    model.register_forward_hook(lambda module, args, out: calls.append(1))
    purified, _ = unbackdoor.purify(model, tiny.batch(), task=TASK, method=name, **QUICK)
    assert purified.unembed.weight.data_ptr() == purified.embed.weight.data_ptr()
    assert purified.second.weight is purified.first.weight
    assert purified.note == {"epoch": 3}
    assert len(purified._forward_hooks) == 1
    assert calls


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


# ------------------------------------------------------------------------------------- interruption


def interrupt(progress):
    raise KeyboardInterrupt


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", method_names())
def test_interrupted_purification_leaves_the_model_as_it_was(clean, name, dtype, training):
    model = mlp().to(dtype).train(training)
    before, classes = state_of(model), [type(m) for m in model.modules()]
    purifier = method(name)(steps=40, batch_size=4)
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


def test_interrupted_purification_has_really_begun(clean):
    """The control: the weights had moved when the interruption came."""
    model, seen = mlp(), []

    def look(progress):
        seen.append(progress.model[4].weight.detach().clone())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FT(**QUICK).purify(model, clean, TASK, watch=look)
    assert not torch.equal(seen[0], model[4].weight)


def test_diverging_run_ends_in_an_error_and_leaves_the_model_as_it_was(clean):
    model = mlp()
    before = state_of(model)
    with pytest.raises(NonFinite):
        FT(steps=60, batch_size=4, lr=1e38, schedule="constant").purify(model, clean, TASK)
    assert_close(state_of(model), before, rtol=0, atol=0)


# ------------------------------------------------------------------------------ what a method may not do


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
def test_purify_catches_a_method_that_breaks_the_model(clean, action, error):
    model = mlp()
    before = state_of(model)
    with pytest.raises(error):
        unbackdoor.purify(model, clean, task=TASK, method=purifier_that(action))
    assert_close(state_of(model), before, rtol=0, atol=0)
    if action in (write_buffer, write_nan):
        with pytest.raises(error):
            purifier_that(action).purify(model, clean, TASK)
        assert_close(state_of(model), before, rtol=0, atol=0)


def test_purify_in_place_names_the_methods_error_not_its_consequence(clean):
    with pytest.raises(ModelChanged, match="extra"):
        purifier_that(rename).purify(mlp(), clean, TASK)


# ------------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("name", method_names())
def test_purify_is_the_same_for_one_seed_and_reports_hashes(clean, name):
    first, one = unbackdoor.purify(mlp(), clean, task=TASK, method=name, seed=3, **QUICK)
    torch.rand(5)
    second, two = unbackdoor.purify(mlp(), clean, task=TASK, method=name, seed=3, **QUICK)
    assert_close(state_of(first), state_of(second), rtol=0, atol=0)
    assert one.hash_after == two.hash_after == weight_hash(first)
    assert one.seed == 3


@pytest.mark.parametrize("name", sorted(set(method_names()) - {"bn-only", "ft"}))
def test_purify_leaves_buffers_bit_identical_with_dropout_and_batchnorm(clean, name):
    purified, _ = unbackdoor.purify(mlp().train(), clean, task=TASK, method=name, steps=5, batch_size=4)
    given = dict(mlp().named_buffers())
    assert_close(dict(purified.named_buffers()), given, rtol=0, atol=0)


def test_purify_updates_buffers_only_where_the_method_says_so(clean):
    given = dict(mlp().named_buffers())
    for purifier, moves in (
        (BNOnly(**QUICK), True),
        (FT(**QUICK), True),
        (FT(**QUICK, bn="frozen"), False),
        (NFT(**QUICK, site="norm"), True),
        (NFT(**QUICK), False),
    ):
        purified, _ = unbackdoor.purify(mlp(), clean, task=TASK, method=purifier)
        assert purifier.updates_buffers == moves
        assert torch.equal(purified[1].running_mean, given["1.running_mean"]) != moves


def test_bn_only_changes_no_weight_and_says_so_where_there_is_no_batchnorm(clean):
    purified, _ = unbackdoor.purify(mlp(), clean, task=TASK, method="bn-only", **QUICK)
    assert_close(dict(purified.named_parameters()), dict(mlp().named_parameters()), rtol=0, atol=0)
    plain = nn.Linear(6, 3)
    same, report = unbackdoor.purify(plain, clean, task=TASK, method="bn-only", **QUICK)
    assert torch.equal(same.weight, plain.weight)
    assert any("no BatchNorm" in text for text in report.notices)


# ------------------------------------------------------------------------------------- names and options


def test_purify_hints_at_names_that_come_close(clean):
    with pytest.raises(UnknownName, match=r"no method 'f-fipp'.*Did you mean 'f-fip'"):
        unbackdoor.purify(mlp(), clean, task=TASK, method="f-fipp")
    with pytest.raises(UnknownName, match=r"no task 'imge'.*Install a task package"):
        unbackdoor.purify(mlp(), clean, task="imge")


@pytest.mark.parametrize("name", method_names())
def test_make_refuses_options_and_presets_that_do_not_exist(name):
    cls = method(name)
    with pytest.raises(BadOption, match=r"no option 'stepz'.*Known: .*steps"):
        cls.make(stepz=3)
    with pytest.raises(BadOption, match="no preset 'best'"):
        cls.make("best")
    for preset in cls.presets:
        assert cls.make(preset, steps=7).steps == 7


@pytest.mark.parametrize("name", method_names())
@pytest.mark.parametrize("bad", [{"steps": 0}, {"steps": 1.5}, {"steps": True}, {"batch_size": 0}, {"batch_size": "8"}])
def test_make_refuses_values_that_make_no_sense(clean, name, bad):
    with pytest.raises(BadOption, match="must be an integer of at least 1"):
        method(name).make(**bad)
    with pytest.raises(UnbackdoorError):
        unbackdoor.purify(mlp(), clean, task=TASK, method=method(name)(**bad))


@pytest.mark.parametrize("lr", [0, -1.0, math.inf, math.nan, "fast"])
@pytest.mark.parametrize("name", sorted(set(method_names()) - {"bn-only"}))
def test_make_refuses_learning_rates_that_make_no_sense(name, lr):
    if "lr" in method(name).__dataclass_fields__:
        with pytest.raises(BadOption, match="must be a positive number"):
            method(name).make(lr=lr)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (NFT, {"site": "bn"}),
        (NFT, {"mask_schedule": "quadratic"}),
        (NFT, {"depth": "deep"}),
        (NFT, {"alpha": 1.5}),
        (NFT, {"alpha": -0.1}),
        (FT, {"bn": "reset"}),
        (FIP, {"trace_every": 0}),
        (FastFIP, {"trace_samples": 0}),
    ],
)
def test_methods_refuse_options_outside_their_range(kind, bad):
    with pytest.raises(BadOption):
        kind(**bad)


def test_purify_takes_options_with_a_name_and_not_with_a_method(clean):
    with pytest.raises(BadOption, match="give them to the Purifier itself"):
        unbackdoor.purify(mlp(), clean, task=TASK, method=NFT(), steps=3)
    with pytest.raises(BadOption):
        unbackdoor.purify(mlp(), clean, task=TASK, method=NFT(), preset="paper")
    _, report = unbackdoor.purify(mlp(), clean, task=TASK, method="fip", preset="paper", **QUICK)
    assert report.options["retain_weight"] == 5.0
    assert report.options["steps"] == 2


# ------------------------------------------------------------------------------------- report and split


def test_report_comes_back_from_json(clean):
    _, report = unbackdoor.purify(mlp(), clean, task=TASK, **QUICK)
    assert Report.from_json(report.to_json()).to_json() == report.to_json()
    assert Report.from_json(report.to_json()) == report
    values = json.loads(report.to_json())
    assert values["total"] == sum(p.numel() for p in mlp().parameters())
    assert 0 < values["trainable"] < values["total"]
    assert values["seconds"] > 0
    assert {"python", "torch", "device"} <= set(values["versions"])


@dataclass(frozen=True, kw_only=True)
class Holds(Purifier):
    """A method that chooses something on a holdout."""

    name = "holds"
    holdout: float = option(0.25, "share of clean samples held out")

    def _purify(self, model, clean, task, run):
        run.notice(f"{len(clean)} + {0 if run.holdout is None else len(run.holdout)}")


def test_holdout_is_split_off_by_class_and_figures_are_measured_on_it(clean):
    _, report = unbackdoor.purify(mlp(), clean, task=TASK, method=Holds())
    assert report.notices == ("9 + 3",)
    assert report.measured_on == "holdout"
    _, report = unbackdoor.purify(mlp(), clean.samples[:1], task=TASK, method=Holds())
    assert report.notices == ("1 + 0",)
    _, report = unbackdoor.purify(mlp(), clean, task=TASK, method=Holds(holdout=0.0))
    assert (report.notices, report.measured_on) == (("12 + 0",), "clean set")
    with pytest.raises(BadOption, match="holdout"):
        unbackdoor.purify(mlp(), clean, task=TASK, method=Holds(holdout=1.0))


def test_watcher_sees_the_model_as_it_is_and_cannot_stop_by_what_it_returns(clean):
    told = []

    def watch(progress):
        told.append((progress.step, progress.steps, copy.deepcopy(progress.model)(clean.samples.inputs).detach()))
        return True

    frozen = FT(steps=40, batch_size=4, bn="frozen")
    purified, report = unbackdoor.purify(mlp().eval(), clean, task=TASK, method=frozen, watch=watch)
    assert told[-1][:2] == (40, 40)
    assert len(told) == len(report.log)
    assert_close(told[-1][2], purified(clean.samples.inputs).detach(), rtol=1e-5, atol=1e-5)
    assert not torch.equal(told[0][2], told[-1][2])


def test_clean_set_on_the_way_is_neither_changed_nor_kept(clean):
    before = clean.samples.inputs.clone()
    unbackdoor.purify(mlp(), CleanSet(clean.samples), task=TASK, **QUICK)
    assert torch.equal(clean.samples.inputs, before)
