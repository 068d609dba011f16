"""CLP: the bound of each channel, pairs with BatchNorm by data flow, silence, and no need of data."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.testing import assert_close

import unbackdoor
from unbackdoor.defender.methods.clp import CLP
from unbackdoor.defender.methods.clp.clp import Channels, channel_lipschitz
from unbackdoor.defender.reparam import NeuronMask
from unbackdoor.defender.reparam.norm_pairs import norms_after
from unbackdoor.errors import BadOption, SingleClass
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


def slow(layer: nn.Module, weight: Tensor) -> list[float]:
    """Largest singular value of every channel's kernel, one after the other, read off PyTorch's documentation."""
    found = []
    if isinstance(layer, _ConvTransposeNd):
        inputs = weight.shape[0] // layer.groups
        for group in range(layer.groups):
            for channel in range(weight.shape[1]):
                kernel = weight[group * inputs : (group + 1) * inputs, channel]
                found.append(float(torch.linalg.svd(kernel.reshape(inputs, -1))[1][0]))
        return found
    for channel in range(weight.shape[0]):
        kernel = weight[channel]
        matrix = kernel.reshape(kernel.shape[0], -1) if isinstance(layer, _ConvNd) else kernel.reshape(-1, 1)
        found.append(float(torch.linalg.svd(matrix)[1][0]))
    return found


def test_bounds_are_those_of_a_slow_loop(case):
    model = case.model()
    handle = NeuronMask(model, partial(model, case.batch().inputs[:2]))
    for site in handle.sites.values():
        layer, _ = site.owners[0]
        assert_close(
            channel_lipschitz(site, None), torch.tensor(slow(layer, site.weight.detach()), dtype=torch.float64)
        )


def test_batchnorm_after_the_layer_scales_its_bounds(cases):
    model = cases["conv-bn"].model()
    handle = NeuronMask(model, partial(model, cases["conv-bn"].batch().inputs[:2]))
    conv, norm = model.core[0], model.core[1]
    alone = channel_lipschitz(handle.sites["core.0.weight"], None)
    scale = norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()
    assert_close(channel_lipschitz(handle.sites["core.0.weight"], norm), alone * scale)
    assert len(alone) == conv.out_channels


class PreActivation(nn.Module):
    """Batch normalisation before the convolution; its channel 2 is far out, and nobody's output alone enters bn2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1, self.conv1 = nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 12, 1)
        self.bn2, self.head = nn.BatchNorm2d(12), nn.Linear(12, 3)
        with torch.no_grad():
            self.conv1.weight[2] *= 40
            self.bn2.weight[5] *= 1000  # by the order of modules this would be conv1's

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv1(self.bn1(x).relu())
        return self.head(self.bn2(x).relu().mean((2, 3)))


def images(count=30):
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.rand(count, 1, 5, 5, generator=generator), torch.arange(count) % 3)


def built():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PreActivation().eval()


def test_a_channel_that_stands_out_is_silenced_by_its_own_weights_in_a_pre_activation_network():
    model, batch = built(), images()
    purified, report = unbackdoor.purify(model, batch, task=TASK, method="clp", u=3.0)
    assert (purified.conv1.weight[2] == 0).all()
    assert purified.conv1.bias[2] == 0
    changed = {n for n, v in purified.state_dict().items() if not torch.equal(v, model.state_dict()[n])}
    assert changed == {"conv1.weight", "conv1.bias"}
    assert torch.equal(purified.conv1.weight[3:], model.conv1.weight[3:])
    assert "pruned 1 of 24 channels" in report.notices[-1]


def test_a_channel_before_batchnorm_is_silenced_there_and_gives_zero_for_any_input():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3))
        nn.init.uniform_(model[1].bias)
    model[1].weight.data[4] = 50.0
    purified, _ = unbackdoor.purify(model.eval(), images(), task=TASK, method="clp", preset="paper")
    out = purified[1](purified[0](torch.randn(6, 1, 5, 5)))
    assert (out[:, 4] == 0).all()
    assert (out[:, [0, 1, 2, 3, 5]] != 0).any()
    assert torch.equal(purified[0].weight, model[0].weight)


def test_scores_are_standardised_layer_by_layer():
    model = built()
    handle = NeuronMask(model, partial(model, images().inputs[:2]), head=False)
    layers = [layer for site in handle.sites.values() for layer, _ in site.owners]
    channels = Channels(handle.sites, norms_after(model, layers, partial(model, images().inputs[:2])))
    for name, site in handle.sites.items():
        norm = model.bn1 if name == "stem.weight" else None
        if name == "stem.weight":  # its output enters bn1 and the sum: bn1 alone takes it as it is
            assert norms_after(model, [model.stem], partial(model, images().inputs[:2]))[model.stem] is model.bn1
        bound = channel_lipschitz(site, norm)
        assert_close(channels.scores[name], (bound - bound.mean()) / bound.std())
    given = {n: v.clone() for n, v in model.state_dict().items()}
    assert channels.prune_(0.0) > 1
    assert channels.prune_(float("inf")) == 0  # everything comes back
    assert all(torch.equal(v, given[n]) for n, v in model.state_dict().items())


class OneClassRefused(ClassificationTask):
    """As the task packages do."""

    def inspect(self, clean: Batch, outputs: Tensor) -> list[str]:
        if len(clean.targets.unique()) == 1:
            raise SingleClass("all clean samples are of one class.")
        return []


def test_one_class_or_one_sample_is_enough():
    alone = Batch(images().inputs, torch.zeros(30, dtype=torch.long))
    for batch in (alone, images(3), images(1)):
        purified, report = unbackdoor.purify(built(), batch, task=OneClassRefused(), method="clp")
        assert (purified.conv1.weight[2] == 0).all()
        assert any("the paper's u = 3" in text for text in report.notices)


def test_the_budget_chooses_the_threshold_and_the_report_says_what_it_cost():
    model, batch = built(), images(60)
    model.head.bias.data -= model(batch.inputs).mean(0).detach()
    labels = model(batch.inputs).argmax(1)
    assert len(labels.unique()) > 1
    _, report = unbackdoor.purify(model, Batch(batch.inputs, labels), task=TASK, method="clp", max_clean_drop=5.0)
    tried = [entry for entry in report.log if "within" in entry]
    assert [entry["u"] for entry in tried][:3] == [5.0, 4.75, 4.5]
    assert report.before["accuracy"] - report.after["accuracy"] <= 5.0 + max(e["standard_error"] for e in tried)


@pytest.mark.parametrize("options", [{"u": 0.0}, {"u": -1.0}, {"max_clean_drop": -1.0}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(BadOption):
        CLP(**options)


def test_interruption_after_pruning_brings_every_channel_back():
    """The watcher is told once, when channels are silent; the control is that they were."""
    model, batch, silent = built(), images(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def watch(progress):
        silent.append((progress.step, progress.steps, bool((progress.model.conv1.weight[2] == 0).all())))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CLP(u=3.0).purify(model, batch, TASK, watch=watch)
    assert silent == [(1, 1, True)]
    assert_close(model.state_dict(), before, rtol=0, atol=0)
