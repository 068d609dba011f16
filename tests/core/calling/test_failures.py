"""Whatever a user's forward raises, or cannot be differentiated by, is one error of ours that names the place."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import unbackdoor
from unbackdoor.defender.methods.ft import FT
from unbackdoor.errors import BadData, ForwardFailed, UnbackdoorError, UnsupportedModel
from unbackdoor.network.calling import guarded
from unbackdoor.registry import method_names
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()
QUICK = {"steps": 2, "batch_size": 4}
KINDS = [ValueError, TypeError, AssertionError, KeyError, IndexError, RuntimeError, ZeroDivisionError, AttributeError]
RAISED = [kind("odd") for kind in (*KINDS, NotImplementedError, StopIteration, RecursionError, MemoryError)]


class Raises(nn.Module):
    """Raises when called, or only where gradients are asked for."""

    def __init__(self, error, later=False):
        super().__init__()
        self.error, self.later = error, later

    def forward(self, x):
        if torch.is_grad_enabled() or not self.later:
            raise self.error
        return x


def with_inside(part):
    return nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.ReLU(), part), nn.Linear(8, 3))


def purified(model, clean, method="ft", **options):
    return unbackdoor.purify(model, clean, task=TASK, method=method, anyway=True, **options)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_what_a_module_raises_names_the_module(clean, error, later):
    with pytest.raises(UnbackdoorError, match=rf"{type(error).__name__}.*'1\.1' \(Raises\)") as caught:
        purified(with_inside(Raises(error, later)), clean, **QUICK)
    assert type(caught.value.__cause__) is type(error)
    assert isinstance(caught.value, ForwardFailed if later else BadData)


def test_what_is_raised_in_the_root_or_by_a_missing_input_is_told(clean):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 3)

        def forward(self, x, y):
            return self.inner(x + y)

    with pytest.raises(BadData, match=r"cannot take the clean samples.*missing 1 required positional argument: 'y'"):
        purified(Two(), clean, **QUICK)
    wider = Batch(torch.rand(8, 7), torch.arange(8) % 3)
    with pytest.raises(BadData, match=r"\(8, 7\).*in '0' \(Linear\)"):
        purified(with_inside(nn.Identity()), wider, **QUICK)


@pytest.mark.parametrize("how", ["scalar", "none", "text", "rows"])
def test_outputs_that_are_none_of_a_batch_are_refused(clean, how):
    class Odd(nn.Linear):
        def forward(self, x):
            logits = super().forward(x)
            return {"scalar": logits.sum(), "none": None, "text": "yes", "rows": logits[:1]}[how]

    with pytest.raises(UnbackdoorError, match=r"returned|model"):
        purified(Odd(6, 3), clean, **QUICK)


def test_an_error_of_the_watcher_or_an_interruption_is_not_the_models(clean, mlp_of_six):
    class Stop(Exception):
        pass

    def watch(progress):
        raise Stop

    with pytest.raises(Stop):
        unbackdoor.purify(mlp_of_six(), clean, task=TASK, method="ft", watch=watch, anyway=True, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        purified(with_inside(Raises(KeyboardInterrupt())), clean, **QUICK)


def test_memory_that_ran_out_is_told_with_what_to_do():
    model = with_inside(Raises(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 GB")))
    with pytest.raises(ForwardFailed, match="lower batch_size"), guarded(model):
        model(torch.rand(2, 6))


class Detached(nn.Sequential):
    def forward(self, x):
        return super().forward(x).detach()


class Frozen(nn.Sequential):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Inference(nn.Sequential):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


class OtherWeights(nn.Sequential):
    """Computes with modules that are not its own, as what was compiled before it was copied does."""

    def __init__(self, *layers):
        super().__init__(*layers)
        object.__setattr__(self, "others", list(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))))

    def forward(self, x):
        for layer in self.others:
            x = layer(x)
        return x.detach() + 0 * torch.zeros((), requires_grad=True)


@pytest.mark.parametrize("name", sorted(set(method_names()) - {"bn-only", "clp", "fine-pruning"}))
@pytest.mark.parametrize("cls", [Detached, Frozen, Inference, OtherWeights])
def test_a_graph_that_is_cut_is_an_error_of_every_method_that_tunes(clean, cls, name, quick):
    model = cls(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = UnbackdoorError if cls is OtherWeights else UnsupportedModel
    with pytest.raises(wanted, match=r"no gradient|cannot be differentiated|reache|no features"):
        purified(model, clean, name, **quick(name))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["ft", "nft", "sam"])
def test_reentrant_checkpointing_is_an_error_that_says_what_to_do(clean, name, quick):
    class Recomputes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            hidden = self.first(x)
            if torch.is_grad_enabled():
                hidden = checkpoint(self.second, hidden, use_reentrant=True)
            return self.head(hidden)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UnsupportedModel, match="use_reentrant=False"):
            purified(Recomputes(), clean, name, **quick(name))


def test_weights_that_no_gradient_reaches_are_named(clean):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            with torch.no_grad():
                hidden = self.body(x)
            return self.head(hidden.relu())

    for name in ("ft", "sam", "fip", "nft", "f-fip"):
        _, report = purified(Half(), clean, name, **QUICK)
        assert any("no gradient reache" in text and "body.weight" in text for text in report.notices), name
        assert not any("head.weight" in text and "no gradient" in text for text in report.notices)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["ft", "nft", "i-bau"])
def test_gradients_are_switched_on_whatever_the_caller_computes_under(clean, mode, name, mlp_of_six, quick):
    model = mlp_of_six()
    expected, _ = purified(model, clean, name, **quick(name))
    with mode():
        found, _ = purified(model, clean, name, **quick(name))
        assert torch.is_grad_enabled() is False
    for (key, value), other in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
        assert not value.is_inference()
    assert torch.is_grad_enabled()


def test_what_was_made_under_inference_mode_is_copied_or_refused(clean, mlp_of_six):
    expected, _ = purified(mlp_of_six(), clean, **QUICK)
    with torch.inference_mode():
        model = mlp_of_six()
        samples = Batch(clean.samples.inputs.clone(), clean.samples.targets.clone())
    found, _ = purified(model, samples, **QUICK)
    for value, other in zip(found.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(value, other)
    with pytest.raises(UnsupportedModel, match="inference_mode"):
        FT(**QUICK).purify(model, clean, TASK, anyway=True)


@pytest.mark.parametrize("made", [torch.jit.script, lambda m: torch.jit.trace(m, torch.zeros(2, 8))])
def test_models_with_scripted_parts_are_evaluated_as_they_are(clean, made):
    """Nothing of them is changed, so their program is no obstacle; it was a bare AttributeError."""
    inner = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval()
    plain = with_inside(inner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = with_inside(made(inner))
        whole = torch.jit.script(plain.eval())
    model.load_state_dict(plain.state_dict())
    wanted = unbackdoor.evaluate(plain, clean, TASK)
    assert unbackdoor.evaluate(model, clean, TASK) == wanted
    with pytest.raises(UnsupportedModel, match=r"TorchScript.*Sequential\(model\)"):
        unbackdoor.evaluate(whole, clean, TASK)
    assert unbackdoor.evaluate(nn.Sequential(whole), clean, TASK) == wanted


def test_a_scripted_part_is_refused_by_name(clean):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = torch.jit.script(nn.Linear(8, 8))
    with pytest.raises(UnsupportedModel, match=r"parts of the model are TorchScript modules: 1\.1"):
        purified(with_inside(part), clean, **QUICK)
