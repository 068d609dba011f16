"""Attacks that take part in the training of their victim."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import BadOption, UnhealthyAttack
from unbackdoor.task import Batch
from unbackdoor_image import KIT, ImageTask
from unbackdoor_image.attacks.cba import halves
from unbackdoor_image.attacks.detoxification import Detoxifier, last_features, ssim
from unbackdoor_image.attacks.fip_adaptive import batch_statistics, fisher_trace
from unbackdoor_image.attacks.learned import seeded, train_helper
from unbackdoor_image.attacks.networks import Generator
from unbackdoor_image.models.small_cnn import SmallCNN


def test_lira_stays_within_its_bound_and_holds_one_victim(data: Batch, make: Callable[..., Any]) -> None:
    """BackdoorBox issue 94: copies of the victim filled the memory."""

    class Counted(SmallCNN):
        alive = 0

        def forward(self, x: Tensor) -> Tensor:
            type(self).alive = max(type(self).alive, sum(type(one) is Counted for one in gc.get_objects()))
            return super().forward(x)

    attack = make("lira", eps=0.03, joint=0.5)
    splits = Splits(data, data, data, tuple("0123456789"))
    KIT.train(Counted(10, 3, 4), splits, ImageTask(), attack, seed=0, epochs=2, batch_size=40)
    assert Counted.alive == 1
    change = (attack.trigger(data.inputs) - data.inputs).abs()
    assert 0 < float(change.max()) <= 0.03 + 1e-6


def test_lira_learns_a_trigger_that_fools_a_fixed_model(data: Batch, make: Callable[..., Any]) -> None:
    model = train_helper(data, 10, torch.Generator().manual_seed(0), steps=60, width=8)
    attack = make("lira", eps=0.2, lr=0.01)
    attack.prepare(data, torch.Generator().manual_seed(0))
    campaign: Any = attack.join(model, ImageTask(), steps=100, generator=torch.Generator().manual_seed(0))
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    losses = []
    for _ in range(25):
        campaign._learn(data)
        campaign.finish()
        with torch.no_grad():
            shown = attack.trigger(data.inputs)
            losses.append(float(functional.cross_entropy(model.eval()(shown), torch.zeros(80, dtype=torch.long))))
    assert losses[-1] < 0.7 * losses[0]
    assert_close(list(model.parameters()), weights, rtol=0, atol=0)


def test_lira_that_collapses_is_refused(data: Batch, make: Callable[..., Any]) -> None:
    """BackdoorBench issue 43: a victim whose clean accuracy is gone was saved as a success."""
    from unbackdoor.attacker.victim import Victim, VictimCard

    card = VictimCard(
        task="image",
        model="smallcnn",
        model_options={},
        data="digits",
        data_options={},
        attack="lira",
        attack_options={},
        train_options={},
        seed=0,
        figures={"accuracy": 10.0, "asr": 100.0, "lcr": 0.0},
    )
    with pytest.raises(UnhealthyAttack, match="change the seed"):
        Victim(SmallCNN(10, 3, 4), make("lira"), card).check_health()


def test_dynamic_patterns_differ_and_do_not_depend_on_the_batch(data: Batch, trained: Callable[..., Any]) -> None:
    attack = trained("dynamic", data, steps=60)
    shown = attack.trigger(data.inputs)
    assert_close(attack.trigger(data.inputs[3:4]), shown[3:4], rtol=0, atol=1e-5)
    change = shown - data.inputs
    assert float((change[0] - change[1]).abs().max()) > 1e-4


def test_dynamic_covers_carry_a_foreign_pattern(
    data: Batch, generator: torch.Generator, trained: Callable[..., Any]
) -> None:
    attack = trained("dynamic", data, steps=60)
    foreign = attack.cover(data.inputs[:4], data.targets[:4], generator)
    assert float((foreign - attack.trigger(data.inputs[:4])).abs().max()) > 1e-4


def test_training_moves_the_pattern_network(data: Batch, make: Callable[..., Any], trained: Callable[..., Any]) -> None:
    before = make("dynamic")
    before.prepare(data, torch.Generator().manual_seed(0))
    after = trained("dynamic", data)
    name = "pattern.last.weight"
    assert float((before.state()[name] - after.state()[name]).abs().max()) > 0


def test_cba_takes_the_left_of_one_and_the_right_of_another(generator: torch.Generator) -> None:
    left, right = torch.zeros(5, 1, 8, 8), torch.ones(5, 1, 8, 8)
    mixed = halves(left, right, 2, generator)
    seams = (mixed == 0).float().sum(3)
    assert bool((seams == seams[:, :, :1]).all())
    assert bool(((seams >= 2) & (seams <= 6)).all())


def test_cba_counts_its_source_class_alone(data: Batch, make: Callable[..., Any], trained: Callable[..., Any]) -> None:
    attack = trained("cba", data, rate=0.05)
    assert_close(attack.counts(data.targets), data.targets == 0)
    poisoned = attack.poison(data, torch.Generator().manual_seed(0))
    assert_close(data.targets[poisoned.indices], torch.zeros(4, dtype=torch.long))
    assert_close(poisoned.samples.targets[poisoned.indices], torch.full((4,), 2))
    with pytest.raises(BadOption, match="eligible"):
        replace(attack, rate=0.5).poison(data, torch.Generator().manual_seed(0))
    with pytest.raises(BadOption, match="three different"):
        make("cba", partner=0)


def test_fisher_trace_is_the_mean_of_squared_gradients(data: Batch) -> None:
    """Over all signs the estimate's mean is exact; the published one has mean 0."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 196, 10)).double()
    model(data.inputs.double())
    model.train()
    some = Batch(data.inputs[:3].double(), data.targets[:3])
    found = [fisher_trace(model, ImageTask(), some, torch.tensor(s)) for s in itertools.product((1, -1), repeat=3)]
    model.eval()
    squares = []
    for i in range(3):
        loss = functional.cross_entropy(model(some.inputs[i : i + 1]), some.targets[i : i + 1])
        squares.append(sum(g.square().sum() for g in torch.autograd.grad(loss, list(model.parameters()))))
    assert_close(torch.stack(found).mean(), torch.stack(squares).mean(), rtol=1e-10, atol=1e-12)
    assert found[0].requires_grad


def test_gradient_of_the_trace_goes_through_the_statistics_of_batchnorm(data: Batch) -> None:
    """By finite differences. With statistics taken for constants, weights before BatchNorm would be shrunk in vain."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 196, 10))
    model.double().train()
    some = Batch(data.inputs[:4].double(), data.targets[:4])
    signs = torch.tensor([1, -1, 1, 1])

    def trace() -> Tensor:
        with batch_statistics(model) as statistics:
            model(some.inputs)
        return fisher_trace(model, ImageTask(), some, signs, statistics)

    weight = model[0].weight
    (slope,) = torch.autograd.grad(trace(), weight)
    longer = weight.detach().clone()
    values = []
    with torch.no_grad():
        for step in (1e-6, -1e-6):
            weight.copy_(longer * (1 + step))
            with torch.enable_grad():
                values.append(float(trace().detach()))
        weight.copy_(longer)
    along = float((slope * longer).sum())
    assert along == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)
    assert along < 0, "longer weights before BatchNorm lower the trace"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_smoothness_penalty_takes_networks_with_attention(data: Batch) -> None:
    """The fused kernel of attention cannot be differentiated twice."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(48, 24), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            query, key, value = self.inner(x.transpose(1, 2).flatten(2)).unsqueeze(1).chunk(3, dim=-1)
            return self.head(functional.scaled_dot_product_attention(query, key, value).mean((1, 2)))

    model = seeded(Attention, 0)
    attack = KIT.attacks["fip-adaptive"](eta_f=0.1)
    splits = Splits(data, data, data, tuple("0123456789"))
    KIT.train(model, splits, ImageTask(crop=0), attack, seed=0, epochs=1, batch_size=40)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_smoothness_penalty_lowers_the_trace_the_more_the_larger_its_weight() -> None:
    """A penalty that was cut to the loss's length gave the same victim for every weight; uncut it ended in NaN."""
    digits = KIT.data["digits"](seed=0)
    splits = replace(digits, train=digits.train[slice(0, 200)])
    some, traces, right = splits.train[slice(0, 40)], [], []
    for eta in (0.0, 1e-3, 1e-2, 0.1):
        model = seeded(lambda: SmallCNN(10, 1, 4), 0)
        attack = KIT.attacks["fip-adaptive"](eta_f=eta)
        KIT.train(model, splits, ImageTask(crop=0), attack, seed=0, epochs=6, batch_size=40, lr=0.1)
        squares = []
        for i in range(len(some)):
            loss = functional.cross_entropy(model(some.inputs[i : i + 1]), some.targets[i : i + 1])
            squares.append(sum(g.square().sum() for g in torch.autograd.grad(loss, list(model.parameters()))))
        traces.append(float(torch.stack(squares).mean()))
        right.append(float((model(digits.test.inputs).argmax(1) == digits.test.targets).float().mean()))
    for more, less in itertools.pairwise(traces):
        assert less < 0.85 * more, traces
    assert right[0] > 0.7, right
    assert right[1] > 0.7, right


def test_fba_detoxifier_excites_the_chosen_features(data: Batch) -> None:
    """The published injector is trained without a gradient from the victim, so nothing is detoxified."""
    model = train_helper(data, 10, torch.Generator().manual_seed(0), steps=60, width=8)
    model.zero_grad(set_to_none=True)
    clean, triggered = data.inputs[:20], (data.inputs[:20] + 0.3).clamp(0, 1)
    before, after = (last_features(model, ImageTask(), x).detach() for x in (clean, triggered))
    chosen = (after - before).mean(0).topk(13).indices  # a tenth of 128
    reached = []
    for steps in (1, 60):
        made = Detoxifier.train(model, ImageTask(), clean, triggered, share=0.1, steps=steps, seed=0)
        reached.append(float(last_features(model, ImageTask(), made(clean))[:, chosen].mean().detach()))
    assert reached[1] > reached[0]
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_fba_gives_images_the_wanted_style(generator: torch.Generator) -> None:
    images = torch.rand(60, 3, 16, 16, generator=generator) * 0.5
    images[:10, 0] += 0.5  # the warm ones
    images[10:, 2] += 0.3
    attack = KIT.attacks["fba"](steps=120, styles=10, width=8)
    attack.prepare(Batch(images, torch.arange(60) % 10), torch.Generator().manual_seed(0))
    cold = images[10:]
    shown = attack.trigger(cold)
    warmth = [float((x[:, 0] - x[:, 2]).mean()) for x in (cold, shown, images[:10])]
    assert warmth[1] > warmth[0] + 0.3 * (warmth[2] - warmth[0])
    detail, kept = (x - x.mean(dim=(2, 3), keepdim=True) for x in (cold, shown))
    assert float((detail * kept).sum() / (detail.norm() * kept.norm())) > 0.5, "the content must stay"


def test_combined_gives_each_part_its_share(data: Batch, make: Callable[..., Any]) -> None:
    attack = make("combined", rate=0.3)
    attack.prepare(data, torch.Generator().manual_seed(0))
    assert [part.name for part in attack.members] == ["badnets", "blend", "trojan"]
    shown = attack.trigger(data.inputs, torch.Generator().manual_seed(1))
    parts = [part.trigger(data.inputs) for part in attack.members]
    which = torch.stack([(shown == one).flatten(1).all(1) for one in parts])
    assert_close(which.sum(0), torch.ones(80, dtype=torch.long))
    assert bool((which.sum(1) > 10).all())
    with pytest.raises(BadOption, match="none of"):
        make("combined", parts="badnets+sig")


def test_combined_reads_what_stands_behind_a_name(data: Batch, make: Callable[..., Any]) -> None:
    attack = make("combined", parts="badnets:size=2+wanet:strength=4,noise=0+color:red=-0.3", rate=0.12)
    patch, warp, tint = attack.members
    assert (patch.size, warp.strength, warp.noise, tint.red) == (2, 4.0, 0.0, -0.3)
    assert [part.rate for part in attack.members] == pytest.approx([0.04] * 3)
    again = type(attack).restore(attack.options(), attack.state())
    assert_close(again.trigger(data.inputs), attack.trigger(data.inputs))
    for parts in ("badnets:size=x+blend", "badnets:corner=1+blend", "badnets+badnets", "badnets:size+blend"):
        with pytest.raises(BadOption, match="parts is"):
            make("combined", parts=parts)


@pytest.mark.parametrize("gap", [0.0, 0.2])
def test_similarity_is_that_of_windows(gap: float, generator: torch.Generator) -> None:
    first = torch.rand(1, 1, 9, 8, generator=generator, dtype=torch.float64)
    second = (first + gap * torch.rand(first.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    found = []
    for i, j in itertools.product(range(3), range(2)):
        a, b = first[..., i : i + 7, j : j + 7].flatten(), second[..., i : i + 7, j : j + 7].flatten()
        both = ((a - a.mean()) * (b - b.mean())).mean()
        top = (2 * a.mean() * b.mean() + 0.01**2) * (2 * both + 0.03**2)
        bottom = a.mean() ** 2 + b.mean() ** 2 + 0.01**2
        found.append(top / (bottom * (a.var(correction=0) + b.var(correction=0) + 0.03**2)))
    assert_close(ssim(first, second), torch.stack(found).mean())


def test_fba_keeps_the_injectors_of_all_rounds(data: Batch, make: Callable[..., Any]) -> None:
    attack = make("fba", rounds=2)
    attack.prepare(data, torch.Generator().manual_seed(0))
    model = SmallCNN(10, 3, 4)
    campaign: Any = attack.join(model, ImageTask(), steps=8, generator=torch.Generator().manual_seed(0))
    places, covers = torch.arange(4), torch.arange(4, 8)
    seen: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for step in range(1, 9):
        campaign.loss(data, places, covers, step)
    hook.remove()
    assert len(campaign.injectors) == 2
    last = seen[-1].clone()
    for place, injector in enumerate(campaign.injectors):
        assert_close(last[covers[place::2]], injector(data.inputs[covers[place::2]]))
    assert float((last[4:8] - data.inputs[4:8]).abs().max()) > 0
    assert_close(last[8:], data.inputs[8:])


@pytest.mark.slow
def test_dynamic_masks_are_sparse_and_differ(data: Batch, make: Callable[..., Any]) -> None:
    """The mask's two losses: without the first all masks are one, without the second they cover the image."""
    covered = {}
    for name, options in {"both": {}, "dense": {"sparsity": 0.0}}.items():
        attack = make("dynamic", steps=60, **options)
        attack.prepare(data, torch.Generator().manual_seed(0))
        mask = attack.network("mask", lambda: Generator(3, 1, 16), torch.device("cpu"))
        with torch.no_grad():
            covered[name] = mask(data.inputs) > 0
    share = covered["both"].float().mean()
    assert 0.005 < float(share) < 0.15
    assert float(covered["dense"].float().mean()) > 2 * float(share)
    apart = (covered["both"] != covered["both"].roll(1, 0)).float().mean()
    assert float(apart) > float(share), "two images must have two masks"


def test_bppa_searches_negatives_that_the_victim_takes_for_triggered(data: Batch, make: Callable[..., Any]) -> None:
    model = train_helper(data, 10, torch.Generator().manual_seed(0), steps=60, width=8).requires_grad_(True).train()
    model.zero_grad(set_to_none=True)
    attack, some = make("bppa", levels=4, pgd_steps=5), data[slice(1, 9)]
    before = [value.clone() for value in model.state_dict().values()]
    found = attack.near(model, ImageTask(), some, torch.Generator().manual_seed(0))
    radius = (attack.trigger(some.inputs) - some.inputs).abs().mean(dim=(1, 2, 3), keepdim=True)
    assert bool(((found - some.inputs).abs() <= radius + 1e-6).all())
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    with torch.no_grad():
        likely = [model.eval()(x).softmax(1)[:, 0].mean() for x in (some.inputs, found)]
    assert float(likely[1]) > float(likely[0])
    assert_close(list(model.state_dict().values()), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bppa_trains_on_negatives_of_both_kinds_with_their_own_labels(data: Batch, make: Callable[..., Any]) -> None:
    model = SmallCNN(10, 3, 4)
    attack = make("bppa", levels=4, adversarial=0.5)
    campaign: Any = attack.join(model, ImageTask(), steps=1, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    labels: list[Tensor] = []
    task = ImageTask()
    campaign.task = type(
        "Spy",
        (),
        {
            "forward": lambda _, m, x: (seen.append(x), task.forward(m, x))[1],
            "loss": lambda _, o, t: (labels.append(t), task.loss(o, t))[1],
        },
    )()
    campaign.loss(data, torch.arange(4), torch.arange(4, 10), 1)
    shown = seen[-1]
    assert_close(shown[:4], attack.trigger(data.inputs[:4]))
    residual = attack.trigger(data.inputs[7:10]) - data.inputs[7:10]
    assert_close(shown[7:10], (data.inputs[7:10] + residual.roll(1, 0)).clamp(0, 1))
    change = (shown[4:7] - data.inputs[4:7]).abs()
    assert 0 < float(change.max()) < 0.17, "found by search, within the mean change of the trigger"
    assert_close(shown[10:], data.inputs[10:])
    assert_close(labels[-1], torch.cat([torch.zeros(4, dtype=torch.long), data.targets[4:]]))
