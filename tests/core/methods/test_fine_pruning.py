"""Fine-pruning: which units are dormant, how many go, that they stay away, and the layers it refuses."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.data import CleanSet
from unbackdoor.defender.methods.fine_pruning import FinePruning
from unbackdoor.defender.methods.fine_pruning.fine_pruning import LastLayer
from unbackdoor.errors import BadOption, UnsupportedModel
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()


def network(flat: bool = False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pool = [nn.AdaptiveAvgPool2d(2 if flat else 1), nn.Flatten()]
        layers = [nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), *pool, nn.Linear(20 if flat else 5, 3)]
        return nn.Sequential(*layers).double().eval()


def images(count=30):
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(count, 1, 6, 6, generator=generator, dtype=torch.float64), torch.arange(count) % 3)


@pytest.mark.parametrize("flat", [False, True])
def test_activity_is_the_mean_over_all_samples_of_each_channel(flat):
    model, batch = network(flat), images()
    last = LastLayer(model, partial(model, batch.inputs[:2]))
    assert (last.units, last.group) == (5, 4 if flat else 1)
    features = model[:3](batch.inputs)
    pooled = nn.functional.adaptive_avg_pool2d(features, 2 if flat else 1)
    activity = last.activity(model, CleanSet(batch), TASK)
    assert_close(activity, torch.stack([pooled[:, c].abs().mean() for c in range(5)]).detach())


def test_a_pruned_unit_is_one_whose_output_is_zero():
    model, batch = network(flat=True), images(4)
    last = LastLayer(model, partial(model, batch.inputs[:2]))
    features = model[:4](batch.inputs)
    features[:, 3] = 0
    wanted = model[5](features.flatten(1))
    last.keep_(torch.tensor([True, True, True, False, True]))
    assert_close(model(batch.inputs), wanted)
    last.keep_(torch.ones(5, dtype=torch.bool))
    assert torch.equal(model[5].weight, last.given)


class Tells(nn.Module):
    """Ten units of rising activity; only unit 6 tells the classes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(2, 10), nn.Linear(10, 2)
        with torch.no_grad():
            self.first.weight.zero_()
            self.first.weight[6] = torch.tensor([0.1, -0.1])
            self.first.bias.copy_(torch.arange(10.0))
            self.head.weight.zero_()
            self.head.weight[:, 6] = torch.tensor([50.0, -50.0])
            self.head.bias.copy_(torch.tensor([-300.0, 300.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x))


def two_classes(count=40):
    labels = torch.arange(count) % 2
    return Batch(nn.functional.one_hot(labels, 2).float(), labels)


def test_the_last_good_pruning_is_kept_and_not_the_first_bad_one():
    """The public code keeps an alias of the network that it goes on pruning, and leaves out the last unit of a step."""
    model = Tells().eval()
    options = {"steps": 1, "lr": 1e-9, "weight_decay": 0.0, "prune_step": 0.1, "holdout": 0.5}
    purified, report = unbackdoor.purify(model, two_classes(), task=TASK, method="fine-pruning", **options)
    pruned = (purified.head.weight == 0).all(0)
    assert "pruned 6 of 10 units" in report.notices[-1]
    assert not bool(pruned[6])
    assert report.after["accuracy"] == 100.0
    assert [entry["pruned units"] for entry in report.log if "within" in entry] == list(range(1, 10))


def test_pruned_units_stay_away_while_the_rest_is_tuned(trained):
    model, batch = trained
    purified, report = unbackdoor.purify(model, batch, task=TASK, method="fine-pruning", steps=20, max_clean_drop=8.0)
    pruned = (purified[3].weight == 0).all(0)
    assert bool(pruned.any()), report.notices
    assert not bool(pruned.all())
    assert not torch.equal(purified[0].weight, model[0].weight)


def test_a_convolution_at_the_end_is_pruned_by_its_input_channels():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        model = nn.Sequential(*layers).double().eval()
    last = LastLayer(model, partial(model, images().inputs[:2]))
    assert last.layer is model[2]
    features = model[:2](images().inputs)
    assert_close(last.activity(model, CleanSet(images()), TASK), features.mean((0, 2, 3)).detach())


def test_a_grouped_convolution_at_the_end_does_not_hear_pruned_units():
    """Each group reads units of its own, as the heads of multi-label decoders do: the same as silencing the units."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        last, pool = nn.Conv2d(6, 4, 3, groups=2), [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), last, *pool).double().eval()
    inputs = images().inputs
    found = LastLayer(model, partial(model, inputs[:2]))
    features = model[:2](inputs)
    assert found.units == 6
    assert_close(found.activity(model, CleanSet(images()), TASK), features.mean((0, 2, 3)).detach())
    keep = torch.tensor([True, False, True, True, True, False])
    expected = model[2:](features * keep.view(1, 6, 1, 1)).detach()
    found.keep_(keep)
    assert_close(model(inputs).detach(), expected)


def test_a_layer_without_units_of_its_own_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    batch = Batch(torch.rand(8, 2, 5, 5), torch.arange(8) % 4)
    with pytest.raises(UnsupportedModel, match=r"the last layer .* is 1\.weight in a ConvTranspose2d"):
        unbackdoor.purify(model, batch, task=TASK, method="fine-pruning")


@pytest.mark.parametrize("options", [{"bn": "train"}, {"prune_step": 0.0}, {"prune_step": 1.0}, {"max_clean_drop": -1}])
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(BadOption):
        FinePruning(**options)
