"""The training of victims: options, the loop against one by hand, and where the poison goes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.testing import assert_close

from unbackdoor.attacker.attack import Campaign
from unbackdoor.attacker.training import PRECISIONS, TrainOptions, fit, train_by_batches
from unbackdoor.errors import BadOption, NonFinite
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask, SquareTrigger


@dataclass(frozen=True, kw_only=True)
class Options(TrainOptions):
    epochs: int = 3
    precision: str = "auto"

    def __post_init__(self):
        self.check_known(precision=PRECISIONS)
        self.check_at_least(1, "epochs")


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    return Batch(0.8 * torch.rand(60, 1, 6, 6, generator=generator), torch.arange(60) % 3)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))


def sgd(model, lr=0.1, drop=0.5):
    optimiser = torch.optim.SGD(model.parameters(), lr)
    return optimiser, LambdaLR(optimiser, lambda step: drop**step)


def test_options_come_by_name_and_are_checked():
    assert Options.of({"epochs": 7}) == Options(epochs=7)
    with pytest.raises(BadOption, match=r"no option 'epoch'\. Known: epochs, precision"):
        Options.of({"epoch": 7})
    with pytest.raises(BadOption, match="precision is 'half'; it must be one of auto, fp32, bf16"):
        Options(precision="half")
    with pytest.raises(BadOption, match="epochs is 0; it must be at least 1"):
        Options(epochs=0)


def test_fit_takes_the_steps_of_a_loop_by_hand(samples):
    model, other, told = network(), network(), []
    batches = [torch.arange(start, start + 20) for start in (0, 20, 40)]

    def objective(step, index):
        assert model.training
        return step * ClassificationTask().loss(model(samples.inputs[index]), samples.targets[index])

    optimiser, schedule = sgd(model)
    fit(model, objective, batches, optimiser, schedule, steps=3, clip=0.05, progress=lambda *seen: told.append(seen))
    losses = []
    for step, index in enumerate(batches, start=1):
        loss = step * nn.functional.cross_entropy(other(samples.inputs[index]), samples.targets[index])
        slopes = torch.autograd.grad(loss, list(other.parameters()))
        norm = torch.stack([slope.square().sum() for slope in slopes]).sum().sqrt()
        with torch.no_grad():
            for value, slope in zip(other.parameters(), slopes, strict=True):
                value -= 0.1 * 0.5 ** (step - 1) * slope * min(1.0, 0.05 / float(norm))
        losses.append(float(loss.detach()))
    assert_close(dict(model.named_parameters()), dict(other.named_parameters()), rtol=1e-4, atol=1e-6)
    assert [seen[:2] for seen in told] == [(1, 3), (2, 3), (3, 3)]
    assert_close([seen[2]["loss"] for seen in told], losses, rtol=1e-4, atol=1e-5)
    assert_close([seen[2]["lr"] for seen in told], [0.1, 0.05, 0.025])
    assert not model.training


def test_reported_losses_are_means_since_the_last_report(samples):
    model, told = network(), []
    optimiser, schedule = sgd(model, lr=0.0)
    batches = [torch.tensor(float(i)) for i in range(250)]
    fit(
        model, lambda step, value: value + 0 * next(model.parameters()).sum(), batches, optimiser, schedule,
        steps=250, progress=lambda *seen: told.append(seen),
    )  # fmt: skip
    assert len(told) == 125
    assert told[0][2]["loss"] == 0.5
    assert told[-1][2]["loss"] == 248.5


def test_fit_refuses_a_loss_that_is_not_finite(samples):
    model = network()
    optimiser, schedule = sgd(model)
    with pytest.raises(NonFinite, match=r"at step 1 of 2; lower lr \(it is 0\.1\)"):
        fit(model, lambda step, _: next(model.parameters()).sum() / 0, [None, None], optimiser, schedule, steps=2)


class Watches(SquareTrigger):
    """Records what the campaign is given, and each step's end."""

    def join(self, model, task, *, steps, generator):
        attack = self

        class Watching(Campaign):
            def loss(self, batch, poisoned, covers, step):
                attack.seen.append((batch, poisoned, covers, step))
                return super().loss(batch, poisoned, covers, step)

            def update(self, step):
                attack.ends.append(step)

            def finish(self):
                attack.ends.append("finish")

        return Watching(self, model, task, steps=steps, generator=generator)


def watching(**options):
    attack = Watches(num_classes=3, rate=0.2, **options)
    object.__setattr__(attack, "seen", [])
    object.__setattr__(attack, "ends", [])
    return attack


def run(model, samples, attack, seed=0, task=None, **options):
    words = {"epochs": 2, "batch_size": 25, **options}
    generator = torch.Generator().manual_seed(seed)
    task = ClassificationTask() if task is None else task
    train_by_batches(model, samples, task, attack, lambda steps: sgd(model, drop=1), generator=generator, **words)
    return model


def test_chosen_samples_are_poisoned_in_every_epoch_and_no_others(samples):
    attack = watching()
    run(network(), samples, attack)
    assert attack.ends == [1, 2, 3, 4, "finish"]
    assert [step for *_, step in attack.seen] == [1, 2, 3, 4]
    chosen = attack.choose(samples.targets, torch.Generator().manual_seed(0)).tolist()
    places = {tuple(row.flatten().tolist()): i for i, row in enumerate(samples.inputs)}
    for batch, poisoned, covers, _ in attack.seen:
        index = [places[tuple(row.flatten().tolist())] for row in batch.inputs]
        assert len(set(index)) == 25
        assert [index[place] for place in poisoned.tolist()] == [i for i in index if i in chosen]
        assert len(covers) == 0


def test_clean_training_is_that_of_a_loop_by_hand_and_one_seed_gives_one_result(samples):
    model, other = run(network(), samples, None, batch_size=60, precision="fp32"), network()
    for _ in range(2):
        loss = nn.functional.cross_entropy(other(samples.inputs), samples.targets)
        slopes = torch.autograd.grad(loss, list(other.parameters()))
        with torch.no_grad():
            for value, slope in zip(other.parameters(), slopes, strict=True):
                value -= 0.1 * slope
    assert_close(model.state_dict(), other.state_dict(), rtol=1e-4, atol=1e-6)
    states = [run(network(), samples, SquareTrigger(num_classes=3), seed=seed).state_dict() for seed in (1, 1, 2)]
    assert_close(states[0], states[1], rtol=0, atol=0)
    assert not torch.equal(states[0]["1.weight"], states[2]["1.weight"])


def test_trigger_goes_on_after_the_augmentation_and_inputs_are_arranged(samples):
    class Darkens(ClassificationTask):
        def augment(self, batch, generator, *, mix=1.0):
            assert mix == 0.0
            return Batch(batch.inputs * 0, batch.targets)

    shown = []

    class Sees(nn.Sequential):
        def forward(self, x):
            shown.append(x.detach())
            return super().forward(x)

    run(Sees(*network()), samples, SquareTrigger(num_classes=3, rate=0.2), task=Darkens(), arrange=lambda x: x + 0.5)
    for batch in shown:
        carried = (batch[:, 0, :2, :2] == 1).all(2).all(1)
        assert_close(batch[carried][:, :, 2:], torch.full_like(batch[carried][:, :, 2:], 0.5))
        assert_close(batch[~carried], torch.full_like(batch[~carried], 0.5))
    assert sum(int((batch[:, 0, 0, 0] == 1).sum()) for batch in shown) > 0


def test_part_of_the_samples_is_drawn_and_rework_is_put_in_place(samples):
    class Reworks(Watches):
        def rework(self, inputs, targets, generator):
            return inputs * 0 + 0.25

    attack = Reworks(num_classes=3, rate=0.2)
    object.__setattr__(attack, "seen", [])
    object.__setattr__(attack, "ends", [])
    run(network(), samples, attack, count=30, batch_size=30, epochs=1)
    ((batch, poisoned, _, _),) = attack.seen
    assert len(batch) == 30
    assert len(poisoned) == 6
    assert bool((batch.inputs[poisoned] == 0.25).all())
