"""Several outputs are judged by the labels or refused; probabilities are read as what they are."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.classes import pick_logits
from unbackdoor.errors import SeveralAnswers
from unbackdoor.network.answers import answered
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()
GoogLeNet = namedtuple("GoogLeNet", "logits aux_logits2 aux_logits1")  # noqa: PYI024 - as torchvision's is


class Net(nn.Module):
    """Gives its logits in one of several forms."""

    def __init__(self, form):
        super().__init__()
        self.body, self.head, self.form = nn.Linear(6, 8), nn.Linear(8, 3), form

    def forward(self, x):
        features = self.body(x).tanh()
        logits = self.head(features)
        return {
            "plain": lambda: logits,
            "features first": lambda: (features, logits),
            "logits first": lambda: (logits, features),
            "list": lambda: [features, logits, None],
            "maps": lambda: (features.view(-1, 2, 2, 2), logits),
            "loss": lambda: (logits.sum(), logits),
            "dictionary": lambda: {"features": features, "output": logits},
            "named": lambda: {"features": features, "logits": logits},
            "googlenet": lambda: GoogLeNet(logits, features, features),
            "with probabilities": lambda: (logits.softmax(1), logits),
            "three": lambda: (features, torch.zeros_like(logits), logits),
            "softmax": lambda: logits.softmax(1),
            "log softmax": lambda: logits.log_softmax(1),
            "features and softmax": lambda: (features, logits.softmax(1)),
        }[self.form]()


def data(count=60):
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    return Batch(inputs, inputs[:, :3].argmax(1))


@pytest.fixture(scope="module")
def trained():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, batch = Net("plain"), data(400)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(batch.inputs), batch.targets).backward()
            optimiser.step()
    return model.state_dict()


def net(form, trained):
    model = Net(form)
    model.load_state_dict(trained)
    return model.eval()


FORMS = ["features first", "logits first", "list", "maps", "loss", "dictionary", "named", "googlenet",
         "with probabilities", "three"]  # fmt: skip
TOLD = {"features first", "logits first", "list", "dictionary", "with probabilities", "three"}


@pytest.mark.parametrize("method", ["ft", "nft"])
@pytest.mark.parametrize("form", FORMS)
def test_the_logits_are_found_and_the_result_is_that_of_a_plain_model(form, method, trained, quick):
    options = quick(method)
    found, report = unbackdoor.purify(net(form, trained), data(), task=TASK, method=method, **options)
    expected, other = unbackdoor.purify(net("plain", trained), data(), task=TASK, method=method, **options)
    assert_close(found.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-5)
    assert report.after == other.after
    assert any("taken for the logits" in text for text in report.notices) == (form in TOLD)
    assert unbackdoor.evaluate(found, data(), TASK) == unbackdoor.evaluate(expected, data(), TASK)
    assert not found._forward_hooks
    assert not found._forward_pre_hooks


@pytest.mark.parametrize("method", ["ft", "nft", "f-fip", "i-bau"])
@pytest.mark.parametrize("form", ["softmax", "log softmax", "features and softmax"])
def test_probabilities_are_tuned_as_the_logits_they_stand_for(form, method, trained, quick):
    options = quick(method, steps=8)
    found, report = unbackdoor.purify(net(form, trained), data(), task=TASK, method=method, **options)
    expected, _ = unbackdoor.purify(net("plain", trained), data(), task=TASK, method=method, **options)
    assert_close(found.state_dict(), expected.state_dict(), rtol=1e-3, atol=1e-4)
    assert any("gives probabilities" in text for text in report.notices) == (form != "log softmax")
    assert isinstance(found(data().inputs), tuple) == (form == "features and softmax")


def test_a_model_at_chance_with_several_outputs_is_refused_with_their_shapes(quick):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net("three")
        model.head = nn.Linear(8, 8)
    with pytest.raises(SeveralAnswers, match=r"0 of shape \(60, 8\), 1 of shape \(60, 8\), 2 of shape \(60, 8\)"):
        unbackdoor.purify(model, data(), task=TASK, method="ft", anyway=True, **quick("ft"))
    with pytest.raises(SeveralAnswers):
        unbackdoor.evaluate(model, data(), TASK)


def test_settling_does_not_last(trained):
    model, batch = net("features first", trained), data()
    with answered(model, TASK, batch) as told:
        assert isinstance(model(batch.inputs), torch.Tensor)
        assert len(told) == 1
        with answered(model, TASK, batch) as again:
            assert again == []
    assert isinstance(model(batch.inputs), tuple)


def test_one_tensor_of_the_right_form_needs_no_judge():
    logits = torch.rand(2, 3)
    single = torch.rand(2, 1)
    answers = [
        (logits, torch.rand(2, 3, 3)),
        (torch.rand(()), logits),
        (logits, single),
        {"gate": single, "out": logits},
    ]
    for answer in (*answers, {"out": logits}, [None, logits], logits):
        assert pick_logits(answer) is logits
    tokens = torch.rand(2, 4, 5)
    assert pick_logits((logits, tokens, {}), ndim=3) is tokens
    with pytest.raises(SeveralAnswers):
        pick_logits((logits, logits))
    with pytest.raises(SeveralAnswers):
        pick_logits((single, single))
