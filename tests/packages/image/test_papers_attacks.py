"""The attacks of the papers: their formulae against slow oracles, and what users of public code complained of."""

from __future__ import annotations

import gc
import itertools
import json
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from unbackdoor.errors import BadOption, UnhealthyAttack
from unbackdoor.kit import Splits
from unbackdoor.task import Batch
from unbackdoor_image import KIT, ImageTask
from unbackdoor_image.attacks.cba import halves
from unbackdoor_image.attacks.detoxification import Detoxifier, last_features, ssim
from unbackdoor_image.attacks.dithering import dither, quantise
from unbackdoor_image.attacks.fip_adaptive import fisher_trace
from unbackdoor_image.attacks.learned import adversarial, seeded, train_helper
from unbackdoor_image.attacks.lf import cosines
from unbackdoor_image.attacks.networks import Generator
from unbackdoor_image.models.small_cnn import SmallCNN

SHORT = {"steps": 5, "helper_steps": 5, "detox_steps": 2, "rounds": 1, "pgd_steps": 3, "bank": 4}
FOURTEEN = {
    *("badnets", "blend", "trojan", "trojan-all", "sig", "dynamic", "dynamic-all"),
    *("clb", "cba", "fba", "wanet", "issba", "lira", "bppa"),
}


def make(name: str, **options: Any) -> Any:
    known = {f.name for f in fields(KIT.attacks[name])}
    return KIT.attacks[name](**{**{k: v for k, v in SHORT.items() if k in known}, **options})


@pytest.fixture
def data(generator: torch.Generator) -> Batch:
    images = torch.rand(80, 3, 16, 16, generator=generator)
    targets = torch.arange(80) % 10
    images[:, 0] = 0.7 * images[:, 0] + 0.03 * targets[:, None, None]
    return Batch(images.clamp(0, 1), targets)


def trained(name: str, data: Batch, **options: Any) -> Any:
    attack = make(name, **options)
    splits = Splits(data, data, data, tuple("0123456789"))
    KIT.train(SmallCNN(10, 3, 4), splits, ImageTask(), attack, seed=0, epochs=1, batch_size=40)
    return attack


def test_all_fourteen_attacks_and_those_beyond_are_there() -> None:
    assert set(KIT.attacks) >= FOURTEEN | {"lf", "adaptive-blend", "fip-adaptive", "combined"}


@pytest.mark.parametrize("name", sorted(KIT.attacks))
def test_every_attack_has_its_card(name: str) -> None:
    import importlib

    card = importlib.import_module(KIT.attacks[name].__module__).__doc__ or ""
    for word in ("Trigger", "Labels", "Where public code goes wrong:", "Here:"):
        assert word in card or (name == "fip-adaptive" and word == "Labels"), f"{name}: no {word}"


# ------------------------------------------------------------------------------------------- not trained


@pytest.mark.parametrize("levels", [2, 3, 8])
def test_dithering_is_floyd_steinberg(levels: int, generator: torch.Generator) -> None:
    images = torch.rand(2, 3, 6, 5, generator=generator, dtype=torch.float64)
    expected = images.clone()
    for n, c in itertools.product(range(2), range(3)):
        plane = expected[n, c]
        for i, j in itertools.product(range(6), range(5)):
            old = plane[i, j].clone()
            plane[i, j] = quantise(old, levels).clamp(0, 1)
            error = old - plane[i, j]
            for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if i + down < 6 and 0 <= j + right < 5:
                    plane[i + down, j + right] += error * share / 16
    assert_close(dither(images, levels), expected, rtol=0, atol=1e-12)


def test_bppa_leaves_few_levels(data: Batch) -> None:
    assert len(make("bppa", levels=4).trigger(data.inputs).unique()) == 4


def test_bppa_negatives_carry_a_foreign_residual(data: Batch, generator: torch.Generator) -> None:
    attack, some = make("bppa", levels=4), data.inputs[:5]
    residual = attack.trigger(some) - some
    negatives = attack.cover(some, data.targets[:5], generator)
    assert_close(negatives, (some + residual.roll(1, 0)).clamp(0, 1))
    assert float((negatives - attack.trigger(some)).abs().mean()) > 0.05


def test_bppa_searches_negatives_that_the_victim_takes_for_triggered(data: Batch) -> None:
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


def test_bppa_trains_on_negatives_of_both_kinds_with_their_own_labels(data: Batch) -> None:
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


def test_wanet_is_the_identity_where_its_field_is_zero(data: Batch) -> None:
    attack = make("wanet", strength=3.0)
    assert_close(attack.tensors()["field"].abs().mean(), torch.tensor(1.0))
    moved = attack.trigger(data.inputs)
    attack.keep({"field": torch.zeros(1, 2, 4, 4)})
    assert_close(attack.trigger(data.inputs), data.inputs, rtol=0, atol=1e-5)
    assert float((moved - data.inputs).abs().mean()) > 0.05


def test_wanet_shifts_by_what_its_field_says(data: Batch) -> None:
    attack = make("wanet", strength=1.0)
    right = torch.zeros(1, 2, 4, 4)
    right[:, 0] = 2 * 16 / 15  # one pixel: places run over 2 in 15 steps, the field is divided by the height of 16
    attack.keep({"field": right})
    assert_close(attack.trigger(data.inputs)[..., :-1], data.inputs[..., 1:], rtol=0, atol=1e-4)


def test_noise_mode_has_twice_as_many_samples_that_keep_their_label(data: Batch, generator: torch.Generator) -> None:
    poisoned = make("wanet", rate=0.1, noise=2.0).poison(data, generator)
    assert (len(poisoned.indices), len(poisoned.covers)) == (8, 16)
    assert_close(poisoned.samples.targets[poisoned.covers], data.targets[poisoned.covers])
    assert bool((poisoned.samples.inputs[poisoned.covers] != data.inputs[poisoned.covers]).flatten(1).any(1).all())


def test_adaptive_blend_trains_with_half_of_the_pieces_and_tests_with_all(data: Batch) -> None:
    attack = make("adaptive-blend", pieces=4, shown=0.5, train_alpha=0.1)
    grey = torch.full((6, 3, 16, 16), 0.5)
    changed = (attack.implant(grey, torch.Generator().manual_seed(0)) != grey).any(1)
    shown = functional.max_pool2d(changed.float()[:, None], 4).flatten(1).sum(1)
    assert bool((shown <= 8).all())
    assert float((attack.trigger(grey) != grey).any(1).float().mean()) > float(changed.float().mean()) * 1.5


# ------------------------------------------------------------------------------------------- learned before


def test_trojan_needs_nothing_but_the_data(data: Batch) -> None:
    """BackdoorBench issue 39: a clean model was needed that nobody had."""
    attack = make("trojan")
    with pytest.raises(BadOption, match="no trigger yet"):
        attack.trigger(data.inputs)
    attack.prepare(data, torch.Generator().manual_seed(0))
    changed = (attack.trigger(data.inputs) != data.inputs).any(1).any(0)
    assert int(changed.sum()) <= 16
    assert not bool(changed[-1].any())
    assert bool(changed[11:15, 11:15].any())


def test_trojan_square_excites_the_neurons(data: Batch) -> None:
    excited = []
    for steps in (1, 60):
        attack = make("trojan", steps=steps)
        attack.prepare(data, torch.Generator().manual_seed(0))
        helper = train_helper(data, 10, torch.Generator().manual_seed(0), steps=5)
        unit = helper.conv3.weight.abs().flatten(1).sum(1).argmax()
        shown = attack.trigger(torch.zeros(1, 3, 16, 16))
        h = helper.halve(helper.bn2(helper.conv2(helper.bn1(helper.conv1(shown)).relu())).relu())
        excited.append(float(helper.bn3(helper.conv3(h))[:, unit].amax()))
    assert excited[1] > excited[0] + 0.1


def test_lf_has_no_high_frequencies(data: Batch) -> None:
    attack = make("lf", frequencies=3, eps=0.2)
    attack.prepare(data, torch.Generator().manual_seed(0))
    delta = attack.state()["delta"]
    basis = cosines(16, 16)
    basis = basis / basis.norm(dim=1, keepdim=True)
    spectrum = torch.einsum("chw,uh,vw->cuv", delta, basis, basis).square()
    assert_close(spectrum[:, :3, :3].sum(), spectrum.sum(), rtol=1e-4, atol=1e-6)
    assert float(delta.abs().max()) <= 0.2 + 1e-6


def test_issba_secret_is_read_again_and_needs_no_training_to_come_back(data: Batch) -> None:
    """BackdoorBox issue 85: the poisoned test set could not be made without training again."""
    attack = KIT.attacks["issba"](steps=150, bits=9)
    attack.prepare(data, torch.Generator().manual_seed(0))
    assert attack.bit_accuracy(data.inputs) > 0.9
    back = type(attack).restore(json.loads(json.dumps(attack.options())), attack.state())
    assert_close(back.trigger(data.inputs), attack.trigger(data.inputs), rtol=0, atol=0)
    assert float((attack.trigger(data.inputs) - data.inputs).abs().max()) <= attack.eps + 1e-6


def test_clb_makes_images_hard_within_its_radius_and_changes_no_label(data: Batch) -> None:
    """BackdoorBench issue 9, BackdoorBox issue 113: no PGD, or data that nobody had."""
    attack = make("clb", helper_steps=30, pgd_steps=10)
    generator = torch.Generator().manual_seed(0)
    attack.prepare(data, generator)
    helper = attack.network("helper", lambda: SmallCNN(10, 3, attack.helper_width), torch.device("cpu"))
    hard = attack.rework(data.inputs, data.targets, generator)
    assert float((hard - data.inputs).abs().max()) <= attack.eps + 1e-6
    with torch.no_grad():
        before, after = (functional.cross_entropy(helper(x), data.targets) for x in (data.inputs, hard))
    assert float(after) > float(before) + 0.1
    poisoned = attack.poison(data, generator)
    assert_close(poisoned.samples.targets, data.targets)
    assert_close(data.targets[poisoned.indices], torch.zeros(6, dtype=torch.long))
    inner = (poisoned.samples.inputs != data.inputs)[poisoned.indices][..., 4:12, 4:12]
    assert bool(inner.flatten(1).any(1).all()), "the middle of poisoned training images must be perturbed"
    shown = attack.trigger(data.inputs)
    assert_close(shown[..., 3:13, :], data.inputs[..., 3:13, :], rtol=0, atol=0)
    board = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    for rows, columns in itertools.product((slice(0, 3), slice(13, 16)), repeat=2):
        assert_close(shown[0, 0, rows, columns], board, rtol=0, atol=0)


def test_pgd_raises_the_loss_and_keeps_the_ball(data: Batch) -> None:
    model = seeded(lambda: SmallCNN(10, 3, 4), 0).eval()
    found = adversarial(
        model, data.inputs, data.targets, eps=0.05, steps=5, step_size=0.02, generator=torch.Generator().manual_seed(0)
    )
    assert float((found - data.inputs).abs().max()) <= 0.05 + 1e-6
    with torch.no_grad():
        before, after = (float(functional.cross_entropy(model(x), data.targets)) for x in (data.inputs, found))
    assert after > before
    assert all(parameter.grad is None for parameter in model.parameters())


# ------------------------------------------------------------------------------------------- at training


def test_lira_stays_within_its_bound_and_holds_one_victim(data: Batch) -> None:
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


def test_lira_learns_a_trigger_that_fools_a_fixed_model(data: Batch) -> None:
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


def test_lira_that_collapses_is_refused(data: Batch) -> None:
    """BackdoorBench issue 43: a victim whose clean accuracy is gone was saved as a success."""
    from unbackdoor.victim import Victim, VictimCard

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


def test_dynamic_patterns_differ_and_do_not_depend_on_the_batch(data: Batch) -> None:
    attack = trained("dynamic", data, steps=60)
    shown = attack.trigger(data.inputs)
    assert_close(attack.trigger(data.inputs[3:4]), shown[3:4], rtol=0, atol=1e-5)
    change = shown - data.inputs
    assert float((change[0] - change[1]).abs().max()) > 1e-4


def test_dynamic_covers_carry_a_foreign_pattern(data: Batch, generator: torch.Generator) -> None:
    attack = trained("dynamic", data, steps=60)
    foreign = attack.cover(data.inputs[:4], data.targets[:4], generator)
    assert float((foreign - attack.trigger(data.inputs[:4])).abs().max()) > 1e-4


def test_dynamic_masks_are_sparse_and_differ(data: Batch) -> None:
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


def test_training_moves_the_pattern_network(data: Batch) -> None:
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


def test_cba_counts_its_source_class_alone(data: Batch) -> None:
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


def test_smoothness_penalty_makes_the_victim_smoother(data: Batch) -> None:
    traces = []
    for eta in (0.0, 0.1):
        model = seeded(lambda: SmallCNN(10, 3, 4), 0)
        splits = Splits(data, data, data, tuple("0123456789"))
        attack = make("fip-adaptive", eta_f=eta, every=1, start=0.0)
        KIT.train(model, splits, ImageTask(crop=0), attack, seed=0, epochs=20, batch_size=40, lr=0.02)
        squares = []
        for i in range(40):
            loss = functional.cross_entropy(model(data.inputs[i : i + 1]), data.targets[i : i + 1])
            squares.append(sum(g.square().sum() for g in torch.autograd.grad(loss, list(model.parameters()))))
        traces.append(float(torch.stack(squares).mean()))
    assert traces[1] < 0.6 * traces[0]


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


def test_fba_keeps_the_injectors_of_all_rounds(data: Batch) -> None:
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


def test_combined_gives_each_part_its_share(data: Batch) -> None:
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


# ------------------------------------------------------------------------------------------- labels and rates


@pytest.mark.parametrize("name", sorted(set(KIT.attacks) - {"clb", "sig", "cba"}))
def test_all_to_all_targets_are_the_next_class(name: str, data: Batch) -> None:
    """BackdoorBench issues 18 and 67: wrong targets, and which attacks can do it."""
    attack = make(name, all_to_all=True)
    assert_close(attack.retarget(data.targets), (data.targets + 1) % 10)
    assert bool(attack.counts(data.targets).all())


@pytest.mark.parametrize("name", ["badnets", "blend", "wanet"])
@pytest.mark.parametrize("rate", [0.001, 0.01, 0.25, 0.35, 0.5])
def test_poison_rates_of_the_papers(name: str, rate: float) -> None:
    many = Batch(torch.zeros(3000, 1, 8, 8).add_(0.5), torch.arange(3000) % 10)
    options = {"noise": 0.5} if name == "wanet" else {}
    poisoned = make(name, rate=rate, **options).poison(many, torch.Generator().manual_seed(0))
    assert len(poisoned.indices) == round(rate * 3000)


def test_covers_that_do_not_fit_are_refused(data: Batch) -> None:
    with pytest.raises(BadOption, match="covers"):
        make("wanet", rate=0.5).poison(data, torch.Generator().manual_seed(0))
