"""Models as people have them are purified or refused, by the public interface alone: nothing else is looked at here."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import unbackdoor
from unbackdoor.errors import UnbackdoorError
from unbackdoor.registry import method as method_of
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask, tiny_victim

TASK = ClassificationTask()
CLASSES = 4


class Net(nn.Module):
    """Answers with the largest of its four inputs."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(CLASSES, CLASSES, bias=False), nn.Linear(CLASSES, CLASSES, bias=False)
        self.body.weight.data.copy_(3 * torch.eye(CLASSES))
        self.head.weight.data.copy_(2 * torch.eye(CLASSES))

    def forward(self, x):
        return self.head(self.body(x))


def clean(count=60):
    """Inputs of which one is the largest by far."""
    targets = torch.arange(count) % CLASSES
    noise = 0.3 * torch.rand(count, CLASSES, generator=torch.Generator().manual_seed(0))
    return functional.one_hot(targets, CLASSES) + noise, targets


def purified(model, samples=None, method="ft", **options):
    words = {"steps": 2, "batch_size": 20} if method != "bn-only" else {}
    return unbackdoor.purify(model, samples or clean(), task=TASK, method=method, **words | options)


def moved(model, result):
    return any(not torch.equal(value, result.state_dict()[name]) for name, value in model.state_dict().items())


# ------------------------------------------------------------------------------------- destroyed, or left as it was


def test_samples_that_a_forward_normalises_in_place_stay_as_they_are():
    class Normalises(Net):
        def forward(self, x):
            return super().forward(x.sub_(0.3).div_(2.0))

    samples = clean()
    given = samples[0].clone()
    purified(Normalises(), samples)
    assert torch.equal(samples[0], given)


def test_features_beside_logits_are_not_taken_for_them():
    class Both(Net):
        def forward(self, x):
            logits = super().forward(x)
            return logits.flip(1), logits

    _, report = purified(Both())
    assert report.before["accuracy"] == 100


def test_a_forward_that_was_compiled_on_the_instance_is_tuned():
    model = Net()
    plain = model.forward

    def compiled(*given):
        return plain(*given)

    compiled._torchdynamo_orig_callable = plain
    model.forward = compiled
    result, _ = purified(model)
    assert moved(model, result)


def test_samples_of_one_class_and_a_single_other_are_refused():
    inputs, _ = clean(16)
    targets = torch.zeros(16, dtype=torch.long)
    targets[5] = 1
    with pytest.raises(UnbackdoorError, match="Give more samples"):
        purified(Net(), (functional.one_hot(targets, CLASSES) + 0.1 * inputs, targets))


# ------------------------------------------------------------------------------------- healthy, and once refused


class Counts(Net):
    """Moves a buffer whenever it is called."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class StaysInTraining(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train(True)


class Normed(Net):
    """Its BatchNorm is in train mode always."""

    def __init__(self):
        super().__init__()
        self.norm = StaysInTraining(CLASSES)

    def forward(self, x):
        return super().forward(self.norm(x))


class Masked(Net):
    """Carries a mask of minus infinity."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))


class Reads(Net):
    """Reads the weight of a layer that it does not call, as Swin and EVA-02 do."""

    def forward(self, x):
        return self.head(functional.linear(x, self.body.weight))


@pytest.mark.parametrize("method", ["ft", "nft"])
@pytest.mark.parametrize("kind", [Counts, Normed, Masked, Reads])
def test_healthy_models_are_purified(kind, method):
    model = kind()
    result, report = purified(model, method=method)
    assert report.after["accuracy"] > 90
    assert moved(model, result)


# ------------------------------------------------------------------------------------------- errors of ours alone


class Raises(Net):
    kind = ValueError

    def forward(self, x):
        raise self.kind("odd")


@pytest.mark.parametrize("kind", [AssertionError, ValueError, TypeError, KeyError])
def test_what_a_forward_raises_is_an_error_of_ours(kind):
    with pytest.raises(UnbackdoorError, match=kind.__name__):
        purified(type("Raises", (Raises,), {"kind": kind})())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_a_tuned_model(mode):
    model = Net()
    with mode():
        result, _ = purified(model)
    assert moved(model, result)


class Detached(Net):
    def forward(self, x):
        return super().forward(x).detach()


class Recomputes(Net):
    def forward(self, x):
        hidden = self.body(x)
        return checkpoint(self.head, hidden, use_reentrant=True) if torch.is_grad_enabled() else self.head(hidden)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [Detached, Recomputes])
def test_a_graph_that_is_cut_is_an_error_of_ours(kind):
    with pytest.raises(UnbackdoorError):
        purified(kind(), method="sam")


class Several(Net):
    def forward(self, x, more):
        return super().forward(x + more)


class Scalar(Net):
    def forward(self, x):
        return super().forward(x).sum()


@pytest.mark.parametrize("kind", [Several, Scalar])
def test_a_forward_of_another_form_is_an_error_of_ours(kind):
    with pytest.raises(UnbackdoorError):
        purified(kind())


@pytest.mark.parametrize("method", ["ft", "sam"])
def test_tables_with_sparse_gradients_are_tuned(method):
    class Table(Net):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(CLASSES, CLASSES, sparse=True)
            self.embed.weight.data.copy_(torch.eye(CLASSES))

        def forward(self, x):
            return super().forward(self.embed(x))

    targets = torch.arange(60) % CLASSES
    model = Table()
    result, _ = purified(model, (targets.clone(), targets), method=method, mixup=0.0)
    assert not torch.equal(model.embed.weight, result.embed.weight)


# ------------------------------------------------------------------------------------------------ told, or worse


def test_layers_that_no_gradient_reaches_are_told():
    class Half(Net):
        def forward(self, x):
            with torch.no_grad():
                hidden = self.body(x)
            return self.head(hidden)

    _, report = purified(Half())
    assert any("body.weight" in notice for notice in report.notices)


def test_a_softmax_at_the_end_changes_nothing():
    class Likely(Net):
        def forward(self, x):
            return super().forward(x).softmax(1)

    words = {"lr": 0.05, "steps": 4, "mixup": 0.0}
    made = (purified(model, **words)[0].head.weight.detach() for model in (Net(), Likely()))
    plain, likely = (weight - 2 * torch.eye(CLASSES) for weight in made)
    assert float(plain.norm()) > 0
    assert float((likely - plain).norm()) < 0.01 * float(plain.norm())


@pytest.fixture(scope="module")
def victim():
    return tiny_victim()


@pytest.mark.parametrize("method", ["fip", "fst", "awm", "ft"])
def test_a_result_that_diverged_is_never_given_back(victim, method):
    few = victim.clean[torch.arange(0, 150, 4)]
    known = {"steps": 8, "batch_size": 16, "rounds": 2}
    options = {name: value for name, value in known.items() if name in method_of(method).__dataclass_fields__}
    try:
        _, report = unbackdoor.purify(victim.model, few, task=TASK, method=method, lr=30.0, **options)
    except UnbackdoorError:
        return
    assert report.given_back, "a method that has a tolerance gives the given model back"


def test_a_model_without_room_is_refused_before_the_work():
    """Its table would take four tebibytes, were it stored."""

    class Giant(Net):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(1).expand(2**40))

    with pytest.raises(UnbackdoorError, match="GiB of memory"):
        purified(Giant())


def test_weights_that_are_nan_have_no_figures():
    model = Net()
    model.head.weight.data[0, 0] = math.nan
    with pytest.raises(UnbackdoorError, match="NaN"):
        unbackdoor.evaluate(model, Batch(*clean()), TASK)


@pytest.mark.parametrize("label", [-1, 2**62])
def test_labels_that_no_class_has_have_no_figures(label):
    inputs, targets = clean()
    targets[3] = label
    with pytest.raises(UnbackdoorError, match="label"):
        unbackdoor.evaluate(Net(), Batch(inputs, targets), TASK)


def test_purifications_in_two_threads_leave_the_switches_of_the_process():
    """The first to begin ends first, so that the other would bring back what it found while the first was at it."""
    first, second, ended = threading.Event(), threading.Event(), threading.Event()

    class Recurrent(Net):
        def __init__(self, mine, other, last):
            super().__init__()
            self.cell = nn.LSTM(CLASSES, CLASSES, batch_first=True)
            self.waits = [mine, other, last]

        def __deepcopy__(self, memo):
            made = type(self)(*self.waits)
            made.load_state_dict(self.state_dict())
            return made

        def forward(self, x):
            mine, other, last = self.waits
            if not torch.backends.mkldnn.enabled:
                mine.set()
                other.wait(0.3)
                if last is not None:
                    last.wait(0.6)
            return super().forward(x) + 0.01 * self.cell(x[:, None])[0][:, 0]

    def work(mine, other, last):
        purified(Recurrent(mine, other, last), method="fip", steps=1, trace_every=1)
        if last is None:
            ended.set()

    before = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, (first, second), (second, first), (None, ended)))
        assert (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled) == before
    finally:
        with torch.backends.__allow_nonbracketed_mutation():
            torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled = before
