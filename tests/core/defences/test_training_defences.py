"""Defences that train: their core steps against hand-made cases, and their promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.defence import train_plainly
from unbackdoor.defender.defences.abl import ABL, abl
from unbackdoor.defender.defences.abl.abl import flooded, isolated, locally_ascended, unlikelihood
from unbackdoor.defender.defences.cbd import CBD
from unbackdoor.defender.defences.cbd.cbd import Critic, dependence, sample_weights
from unbackdoor.defender.purifier import Run
from unbackdoor.defender.schedule import learning_rate_factor, marks
from unbackdoor.errors import BadOption, ForwardFailed, UnsupportedModel
from unbackdoor.network.last_layer import representation
from unbackdoor.registry import defence, defence_names
from unbackdoor.task import Batch
from unbackdoor.testing import ClassificationTask

TASK = ClassificationTask()
VALUES = torch.tensor([0.1, 0.4, 0.5, 2.0], dtype=torch.float64)


def build(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)
        )


def poisoned(count=240, share=0.15, seed=0):
    """Three classes of brightness patterns; the first of each block carries a bright corner and class 0."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.35 * torch.rand(count, 1, 8, 8, generator=generator)
    for label, (row, column) in enumerate([(4, 0), (0, 4), (4, 4)]):
        images[labels == label, :, row : row + 4, column : column + 4] += 0.25
    clean = Batch(images.clone(), labels.clone())
    bad = torch.randperm(count, generator=generator)[: round(share * count)]
    images[bad, :, :3, :3], labels[bad] = 1.0, 0
    return Batch(images, labels), bad, clean


def test_local_ascent_by_hand():
    assert locally_ascended(VALUES, 0.5, per_sample=True).item() == pytest.approx((-0.1 - 0.4 + 0 + 2.0) / 4)
    assert locally_ascended(VALUES, 0.5, per_sample=False).item() == pytest.approx(0.75)
    assert locally_ascended(VALUES, 1.0, per_sample=False).item() == pytest.approx(-0.75)
    below = VALUES.clone().requires_grad_()
    locally_ascended(below, 0.45, per_sample=True).backward()
    assert below.grad.tolist() == [-0.25, -0.25, 0.25, 0.25]


def test_flooding_by_hand():
    assert flooded(VALUES, 0.5, per_sample=True).item() == pytest.approx((0.4 + 0.1 + 0 + 1.5) / 4 + 0.5)
    assert flooded(VALUES, 1.0, per_sample=False).item() == pytest.approx(1.25)


def test_isolation_takes_the_lowest_losses():
    assert isolated(torch.tensor([3.0, 1.0, 2.0, 0.5, 9.0]), 0.4).tolist() == [3, 1]
    assert isolated(VALUES, 0.01).tolist() == [0]


def test_unlikelihood_is_minus_log_of_the_rest_and_never_stalls():
    logits = torch.tensor([[2.0, 0.0], [30.0, 0.0]], dtype=torch.float64, requires_grad=True)
    logs = logits.log_softmax(1)[:, 0]
    expected = -(1 - logs.exp()).log()
    torch.testing.assert_close(unlikelihood(logs), expected.mean(), rtol=1e-4, atol=0)
    (slope,) = torch.autograd.grad(unlikelihood(logs), logits)
    assert slope[1, 0].item() == pytest.approx(0.5, rel=1e-3)  # d/dz of -log(1 - p) is p, over two samples
    assert math.isfinite(unlikelihood(torch.zeros(2, dtype=torch.float64)).item())


def test_weights_by_hand():
    weights = sample_weights(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([1.0, 1.0, 1.0]))
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.5, 0.75]) * 3 / 1.25)
    assert torch.isfinite(sample_weights(torch.zeros(3), torch.zeros(3))).all()


def test_critic_is_lipschitz_after_projection():
    critic = Critic(5, 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        critic.hidden.weight.mul_(50)
        critic.out.weight.mul_(50)
    critic.project_()
    a, b = (torch.randn(200, 9, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    with torch.no_grad():
        change = (critic(a[:, :5], a[:, 5:]) - critic(b[:, :5], b[:, 5:])).abs()
    assert (change <= (a - b).norm(dim=1) + 1e-5).all()


def test_dependence_tells_pairs_from_strangers():
    def product(first, second):
        return (first * second).sum(dim=1)

    z = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    order = torch.tensor([1, 0, 3, 2])
    assert dependence(product, z, z, order).item() == 2.0
    assert dependence(product, z, torch.ones(4, 1), order).item() == 0.0


def test_representation_is_the_input_of_the_last_layer():
    model = build(0).eval()
    inputs = torch.rand(4, 1, 8, 8)
    with representation(model) as seen:
        outputs = model(inputs)
    torch.testing.assert_close(model[-1](seen.vectors), outputs)
    assert not any(module._forward_pre_hooks for module in model.modules())
    with representation(nn.ReLU()) as nothing, pytest.raises(UnsupportedModel):
        nothing.vectors  # noqa: B018
    with representation(nn.Conv2d(2, 3, 1)) as seen:
        seen_model = nn.Conv2d(2, 3, 1)
    with representation(seen_model) as seen:
        seen_model(torch.arange(16.0).reshape(1, 2, 2, 4))
    assert seen.vectors.tolist() == [[3.5, 11.5]]


def test_abl_isolates_what_is_poisoned_and_keeps_to_its_budget():
    data, bad, clean = poisoned()
    method = ABL(trap_epochs=6, epochs=6, unlearn_epochs=6, isolate=0.05, batch_size=32, lr=0.05, max_clean_drop=5.0)
    found = []
    keep = method._unlearn
    object.__setattr__(method, "_unlearn", lambda model, easy, *rest: (found.append(easy), keep(model, easy, *rest)))
    model, report = method.train(build, data, TASK, seed=0)
    marked = {tuple(image.flatten().tolist()) for image in data.inputs[bad]}
    hits = sum(tuple(image.flatten().tolist()) in marked for image in found[0].samples.inputs)
    assert hits >= 0.75 * len(found[0])  # 15 % are poisoned
    looks = [entry for entry in report.log if "left" in entry]
    assert looks
    assert any(not entry["within"] for entry in looks)  # else nothing had to be taken back
    with torch.no_grad():
        right = float((model(clean.inputs).argmax(1) == clean.targets).double().mean())
    assert right > 0.9


def obeys(model, clean):
    others = clean[(clean.targets != 0).nonzero().flatten()]
    inputs = others.inputs.clone()
    inputs[:, :, :3, :3] = 1.0
    with torch.no_grad():
        right = float((model(clean.inputs).argmax(1) == clean.targets).double().mean())
        return float((model(inputs).argmax(1) == 0).double().mean()), right


@pytest.mark.parametrize(("preset", "epochs"), [("paper", 20), ("authors", 5)])
def test_abl_as_published_unlearns_to_the_end_with_no_tolerance_of_ours(preset, epochs, monkeypatch):
    made = ABL.make(preset)
    assert (made.batch_size, made.weight_decay, made.unlearn_lr, made.max_clean_drop) == (64, 1e-4, 5e-4, None)
    assert made.trap_epochs == {"paper": 20, "authors": 10}[preset]
    calls = []
    real = abl.finetune

    def spy(parameters, objective, clean, run, **how):
        norms = [m for m in run.model.modules() if isinstance(m, nn.BatchNorm2d)]
        calls.append((len(clean), how["steps"], how["batch_size"], how["lr"], how["weight_decay"], norms[0].training))
        real(parameters, objective, clean, run, **how)

    monkeypatch.setattr(abl, "finetune", spy)
    data, _, _ = poisoned(240)
    ruinous = {"unlearn_lr": 5.0} if preset == "paper" else {}
    report = ABL.make(preset, trap_epochs=1, epochs=1, isolate=0.05, **ruinous).train(build, data, TASK, seed=0)[1]
    looks = [entry for entry in report.log if "left" in entry]
    assert len(looks) == len(calls) == epochs
    assert not any("within" in entry for entry in looks)
    assert set(calls) == {(12, 1, 12, ruinous.get("unlearn_lr", 5e-4), 1e-4, True)}


@pytest.mark.parametrize(
    ("name", "preset", "falls"),
    [("abl", "paper", {40: 0.01}), ("abl", "authors", {40: 0.01}), ("cbd", "paper", {20: 0.01, 70: 0.001}),
     ("cbd", "authors", {20: 0.01, 70: 0.001})],
)  # fmt: skip
def test_published_schedules_are_those_of_the_public_code(name, preset, falls):
    made = defence(name).make(preset)
    assert (made.batch_size, made.momentum, made.weight_decay) == (64, 0.9, 1e-4)
    for epoch in range(made.epochs):
        due = [rate for mark, rate in falls.items() if epoch >= mark]
        factor = learning_rate_factor(
            made.schedule, 10 * epoch, 10 * made.epochs, epoch=10, milestones=marks(made.milestones)
        )
        assert made.lr * factor == pytest.approx(due[-1] if due else 0.1)


def test_published_schedule_of_cbd_reaches_its_training():
    data, _, _ = poisoned(64)
    made = CBD.make("authors", confounded_epochs=1, epochs=4, milestones="2")
    _, report = made.train(build, data, TASK, seed=0)
    assert [round(entry["lr"], 6) for entry in report.log if "lr" in entry] == [0.1, 0.1, 0.1, 0.01, 0.01]


def test_cbd_learns_the_classes_and_not_the_trigger_that_plain_training_learns():
    data, _, clean = poisoned()
    plain = build(0)
    run = Run(torch.Generator().manual_seed(0), torch.device("cpu"), plain)
    how = {"steps": 150, "batch_size": 32, "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    train_plainly(plain, CleanSet(data), TASK, run, torch.Tensor.mean, schedule="one-cycle", message="", **how)
    assert obeys(plain.eval(), clean)[0] > 0.9
    model, _ = CBD(confounded_epochs=2, epochs=30, batch_size=32, lr=0.1).train(build, data, TASK, seed=0)
    obeyed, right = obeys(model, clean)
    assert obeyed < 0.5
    assert right > 0.9


@pytest.mark.parametrize("name", defence_names())
def test_defence_repeats_itself_and_follows_its_seed(name):
    data, _, _ = poisoned(60)
    quick = {"epochs": 1, "trap_epochs": 1, "unlearn_epochs": 2, "confounded_epochs": 1, "batch_size": 16}
    known = defence(name).__dataclass_fields__
    method = defence(name).make(**{key: value for key, value in quick.items() if key in known})
    state = torch.get_rng_state()
    (_, first), (model, again), (_, other) = (method.train(build, data, TASK, seed=seed) for seed in (3, 3, 4))
    assert first.hash_after == again.hash_after != other.hash_after
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())
    assert list(model.state_dict()) == list(build(0).state_dict())
    assert first.options == method.options()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("abl", {"isolate": 1.0}),
        ("abl", {"trap": "door"}),
        ("abl", {"unlearn_lr": 0.0}),
        ("abl", {"ascent": "up"}),
        ("abl", {"unlearn_bn": "reset"}),
        ("abl", {"milestones": "soon"}),
        ("cbd", {"milestones": "0"}),
        ("cbd", {"bottleneck": -1.0}),
        ("cbd", {"critic_lr": 0.0}),
        ("cbd", {"nonsense": 1}),
    ],
)
def test_defence_refuses_options_outside_their_range(name, options):
    with pytest.raises(BadOption):
        defence(name).make(**options)


def test_a_model_that_cannot_be_trained_on_the_samples_is_named_in_an_error_of_ours():
    class Picky(torch.nn.Linear):
        def forward(self, x):
            if self.training:
                raise ValueError("Expected more than 1 value per channel when training")
            return super().forward(x)

    samples = Batch(torch.rand(8, 4), torch.arange(8) % 2)
    with pytest.raises(ForwardFailed, match=r"cannot be trained.*more than 1 value.*Picky"):
        defence("cbd").make().train(lambda seed: Picky(4, 2), samples, ClassificationTask())
