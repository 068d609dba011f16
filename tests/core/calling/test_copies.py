"""A copy has nothing of the original in it: forwards and hooks that were put on the instance, compiled or not."""

from __future__ import annotations

import functools
import types

import pytest
import torch
from torch import nn

import unbackdoor
from unbackdoor.errors import UnsupportedModel
from unbackdoor.network.copying import copied, eager
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.second(self.first(x).relu())


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


def as_compiled(bound):
    """What ``torch.compile`` of a bound method gives, as far as anyone can tell: a function that holds the method."""

    def compiled(*args, **kwargs):
        return bound(*args, **kwargs)

    compiled._torchdynamo_orig_callable = bound
    return compiled


def doubled(self, x):
    return 2 * self.second(self.first(x).relu())


def compile_forward(model):
    model.forward = as_compiled(model.forward)


def compile_part(model):
    model.first.forward = as_compiled(model.first.forward)


def compile_patched(model):
    model.forward = as_compiled(types.MethodType(doubled, model))


def patch(model):
    model.forward = types.MethodType(doubled, model)


def patch_by_partial(model):
    model.forward = functools.partial(doubled, model)


def wrap_as_accelerate_does(model):
    old = model.forward
    model.forward = functools.update_wrapper(functools.partial(lambda module, x: doubled(module, x), model), old)


CHANGES = [compile_forward, compile_part, compile_patched, patch, patch_by_partial, wrap_as_accelerate_does]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_copy_computes_with_its_own_weights_and_leaves_the_original(change):
    model, x = net(), torch.rand(4, 6)
    change(model)
    before = model(x).detach()
    made, notices = copied(model)
    assert torch.equal(made(x), before)
    with torch.no_grad():
        for value in made.parameters():
            value.zero_()
    assert not bool(made(x).any())
    assert torch.equal(model(x), before)
    assert bool(notices) == change.__name__.startswith("compile")
    assert "forward" in vars(model.first if change is compile_part else model)


@pytest.mark.parametrize("name", ["anp", "clp", "f-fip", "fip", "ft", "ft-sam", "i-bau", "nft", "rnp", "sam"])
@pytest.mark.parametrize("change", [compile_forward, patch], ids=lambda change: change.__name__)
def test_every_method_tunes_a_model_whose_forward_is_the_instances_own(clean, change, name, quick):
    model, plain = net(), net()
    if change is patch:
        plain.__class__ = type("Net", (Net,), {"forward": doubled})
    change(model)
    options = quick(name) | {"anyway": True}
    found, report = unbackdoor.purify(model, clean, task=TASK, method=name, **options)
    expected, _ = unbackdoor.purify(plain, clean, task=TASK, method=name, **options)
    for key, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    assert any("compiled on the instance" in text for text in report.notices) == (change is compile_forward)


def hold_by_closure(model):
    model.forward = lambda x: model.second(model.first(x))


def hold_by_default(model):
    def forward(x, first=model.first):
        return first(x)[:, :3]

    model.forward = forward


def hold_by_hook(model):
    first = model.first
    model.second.register_forward_hook(lambda module, args, output: output + first.weight.sum())


def hold_by_a_list(model):
    layers = [model.first, model.second]
    model.forward = lambda x: layers[1](layers[0](x))


@pytest.mark.parametrize("change", [hold_by_closure, hold_by_default, hold_by_hook, hold_by_a_list])
def test_functions_that_hold_the_original_are_refused_by_name(clean, change, quick):
    model = net()
    change(model)
    named = "second" if change is hold_by_hook else "the model itself"
    with pytest.raises(UnsupportedModel, match=rf"holds the original model: {named}"):
        unbackdoor.purify(model, clean, task=TASK, method="ft", anyway=True, **quick("ft"))


def test_in_place_a_function_that_holds_the_model_is_right(clean, quick):
    from unbackdoor.defender.methods.ft import FT

    model, plain = net(), net()
    hold_by_closure(model)
    plain.__class__ = type("Net", (Net,), {"forward": lambda self, x: self.second(self.first(x))})
    for one in (model, plain):
        FT(**quick("ft")).purify(one, clean, TASK, anyway=True)
    for value, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(value, other)


def test_hooks_that_only_record_are_copied():
    model, kept = net(), {}
    model.first.register_forward_hook(lambda module, args, output: kept.update(last=output))
    made, notices = copied(model)
    assert not notices
    made(torch.rand(2, 6))
    assert "last" in kept


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ft", "nft", "f-fip", "sam", "i-bau"])
@pytest.mark.parametrize("how", ["forward", "part", "method", "wrapper"])
def test_real_compiled_models_give_the_bits_of_the_plain_one(clean, how, name, quick):
    model, plain = net(), net()
    if how == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    elif how == "part":
        model.first = torch.compile(model.first, backend="eager")
    elif how == "method":
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    model(clean.samples.inputs)
    options = quick(name) | {"anyway": True}
    found, _ = unbackdoor.purify(model, clean, task=TASK, method=name, **options)
    expected, _ = unbackdoor.purify(plain, clean, task=TASK, method=name, **options)
    values = {key.replace("_orig_mod.", ""): value for key, value in found.state_dict().items()}
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(values[key], value)
        assert not torch.equal(values[key], plain.state_dict()[key]) or name == "nft"


def test_what_is_not_compiled_runs_as_ever():
    model = net()
    with eager(model):
        assert model(torch.rand(2, 6)).shape == (2, 3)
