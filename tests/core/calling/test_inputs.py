"""A forward that writes into its input: neither the clean samples nor the user's own tensors change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import unbackdoor
from unbackdoor.defender.curvature import per_sample_gradients
from unbackdoor.defender.reparam import FullWeights
from unbackdoor.errors import UnsupportedModel
from unbackdoor.network.calling import Guard, guarded
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()
QUICK = {"steps": 2, "batch_size": 4}


class Normalises(nn.Module):
    """Subtracts and divides in place, as code that was written for one pass over fresh batches does."""

    how = "methods"

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        if self.how == "methods":
            x.sub_(0.3).div_(2.0)
        elif self.how == "data":
            x.data.sub_(0.3)
        elif self.how == "numpy":
            x.detach().numpy()[:] -= 0.3
        elif self.how == "item":
            x[:, 0] = 0
        else:
            nn.functional.relu(x, inplace=True)
        return self.head(self.inner(x).relu())


def writer(how):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return type("Normalises", (Normalises,), {"how": how})()


class Copies(Normalises):
    """The same answers, without writing."""

    def forward(self, x):
        return super().forward(x.clone())


@pytest.mark.parametrize("method", ["ft", "nft", "f-fip", "i-bau", "fine-pruning", "fip"])
@pytest.mark.parametrize("how", ["methods", "data", "numpy", "item", "relu"])
def test_samples_are_left_as_they_were_and_the_result_is_that_of_a_model_that_copies(clean, how, method, quick):
    given = clean.samples.inputs.clone()
    options = quick(method) | {"anyway": True}
    model = writer(how)
    purified, report = unbackdoor.purify(model, clean, task=TASK, method=method, **options)
    assert torch.equal(clean.samples.inputs, given)
    copying = type("Copies", (Copies,), {"how": how})()
    copying.load_state_dict(model.state_dict())
    expected, other = unbackdoor.purify(copying, clean, task=TASK, method=method, **options)
    assert torch.equal(clean.samples.inputs, given)
    for name, value in expected.state_dict().items():
        assert torch.equal(purified.state_dict()[name], value), name
    assert (report.before, report.after) == (other.before, other.after)
    assert unbackdoor.evaluate(purified, clean.samples, TASK) == unbackdoor.evaluate(expected, clean.samples, TASK)
    assert torch.equal(clean.samples.inputs, given)


def test_a_model_that_does_not_write_gets_the_very_tensors_but_for_its_first_call():
    model, seen = nn.Linear(2, 2), []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.rand(3, 2)
    with guarded(model):
        for _ in range(3):
            model(x)
    assert [tensor is x for tensor in seen] == [False, True, True]
    model(x)
    assert seen[-1] is x
    assert not [hook for hook in model._forward_pre_hooks.values() if isinstance(getattr(hook, "__self__", 0), Guard)]


def test_a_model_that_begins_to_write_later_is_an_error():
    class Later(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x.mul_(2.0) if self.calls > 2 else x)

    model, x = Later(2, 2), torch.rand(3, 2)
    with pytest.raises(UnsupportedModel, match="writes into its input in some calls"), guarded(model):  # noqa: PT012
        for _ in range(3):
            model(x)


def test_keywords_and_nested_inputs_are_kept_too():
    class Tokens(nn.Module):
        def forward(self, first, *, masks):
            first["ids"][:, 0] = 0
            masks[0].zero_()
            return first["ids"].float() + masks[0]

    model, ids, mask = Tokens(), torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3)
    with guarded(model):
        for _ in range(3):
            assert float(model({"ids": ids}, masks=[mask]).sum()) == 4
    assert int(ids.sum()) == int(mask.sum()) == 6


def test_gradients_of_each_sample_are_those_of_a_model_that_copies():
    model, batch = writer("methods").eval(), Batch(torch.rand(4, 6), torch.tensor([0, 1, 2, 0]))
    twin = Copies().eval()
    twin.load_state_dict(model.state_dict())
    with guarded(model), FullWeights(model) as weights:
        model(batch.inputs)
        found = per_sample_gradients(weights, model, TASK, batch)
    with FullWeights(twin) as weights:
        expected = per_sample_gradients(weights, twin, TASK, batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
