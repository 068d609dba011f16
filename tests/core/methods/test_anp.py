"""ANP: the perturbation, its inner maximum, the objective, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

import unbackdoor
from unbackdoor.defender.methods.anp import ANP
from unbackdoor.defender.methods.anp.anp import NeuronNoise
from unbackdoor.defender.pruning import neuron_mask
from unbackdoor.defender.reparam import NeuronMask
from unbackdoor.errors import BadOption
from unbackdoor.testing import ClassificationTask, tiny_models

TASK = ClassificationTask()


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
        for value in (model[1].weight, model[1].bias, model[1].running_mean, model[1].running_var):
            nn.init.uniform_(value, 0.5, 1.5)
    return model


def data(count=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 5, generator=generator, dtype=torch.float64), torch.arange(count) % 3


def explicit(model, x, m, delta, xi):
    """``(m + delta) W x + (1 + xi) b`` written out, BatchNorm in eval mode."""
    first, norm, head = model[0], model[1], model[3]
    z = x @ ((m + delta["0.weight"]).unsqueeze(1) * first.weight).T + (1 + xi["0.bias"]) * first.bias
    z = (z - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + (1 + xi["1.bias"]) * norm.bias
    return z.tanh() @ head.weight.T + (1 + xi["3.bias"]) * head.bias


def attached(model, x):
    mask = NeuronMask(model, partial(model, x[:2]), head=False)
    return mask, NeuronNoise(model, mask)


def noise_of(noise, seed=3):
    generator = torch.Generator().manual_seed(seed)

    def draw(value):
        return 0.6 * torch.rand(value.shape, generator=generator, dtype=value.dtype) - 0.3

    return {n: draw(v) for n, v in noise.mask.parameters().items()}, {n: draw(v) for n, v in noise.biases.items()}


def test_perturbed_network_is_the_formula_and_the_given_one_comes_back():
    model, (x, _) = network(), data()
    mask, noise = attached(model, x)
    delta, xi = noise_of(noise)
    assert set(xi) == {"0.bias", "1.bias", "3.bias"}
    before = model(x)
    m = mask.parameters()["0.weight"].detach()
    m.copy_(torch.tensor([0.2, 1.0, 0.5, 0.9], dtype=torch.float64))
    wanted = explicit(model, x, m, delta, xi)
    with mask, noise.on(delta, xi):
        assert_close(model(x), wanted)
    assert_close(model(x), before, rtol=0, atol=0)


@pytest.mark.parametrize("steps", [1, 3])
def test_inner_maximum_takes_signed_steps_within_the_box(steps):
    model, (x, y) = network(), data()
    mask, noise = attached(model, x)
    eps = 0.4
    m = torch.ones(4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    sizes = {**mask.parameters(), **noise.biases}
    wanted = {n: torch.empty(v.shape, dtype=v.dtype).uniform_(-eps, eps, generator=generator) for n, v in sizes.items()}
    for _ in range(steps):
        leaves = {n: v.clone().requires_grad_() for n, v in wanted.items()}
        loss = functional.cross_entropy(explicit(model, x, m, leaves, leaves), y)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        wanted = {
            n: (v + eps / steps * s.sign()).clamp(-eps, eps) for (n, v), s in zip(wanted.items(), slopes, strict=True)
        }
    with mask:
        loss_of = lambda: functional.cross_entropy(model(x), y)  # noqa: E731
        delta, xi = noise.worst(loss_of, eps, steps, torch.Generator().manual_seed(7))
        with noise.on(delta, xi):
            worse = loss_of()
        assert worse > loss_of()
    for name, value in (delta | xi).items():
        assert_close(value, wanted[name])
        assert value.abs().max() <= eps


def test_one_step_of_the_masks_is_that_of_the_formula(clean):
    """``m <- m - lr grad(alpha L + (1 - alpha) L_perturbed)``, cut to [0, 1], before anything is pruned."""
    model, (x, y) = network(), data()
    seen = {}

    class Kept(ANP):
        name = "kept"

    import unbackdoor.defender.methods.anp.anp as module

    def spy(mask, scores, threshold, budget):
        seen.update(scores)

    original, module.prune_below = module.prune_below, spy
    try:
        Kept(
            site="weight", steps=1, batch_size=6, lr=0.05, momentum=0.0, eps=0.3, alpha=0.25, threshold=0.0, holdout=0.0
        ).purify(network(), (x, y), TASK, seed=5)
    finally:
        module.prune_below = original
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(6, generator=generator)
    x, y = x[order], y[order]
    m = torch.ones(4, dtype=torch.float64, requires_grad=True)
    mask, noise = attached(model, x)
    with mask:
        delta, xi = noise.worst(lambda: functional.cross_entropy(model(x), y), 0.3, 1, generator)
    none = {"0.weight": 0.0}, dict.fromkeys(xi, 0.0)
    loss = 0.25 * functional.cross_entropy(explicit(model, x, m, *none), y)
    loss = loss + 0.75 * functional.cross_entropy(explicit(model, x, m, delta, xi), y)
    (slope,) = torch.autograd.grad(loss, [m])
    assert_close(
        seen["0.weight"], (m.detach() - 0.05 * slope).clamp(0, 1), rtol=0, atol=2e-6
    )  # a millionth breaks ties


@pytest.mark.parametrize("site", ["weight", "norm"])
def test_pruned_neurons_are_zero_and_the_others_bit_for_bit_as_given(trained, site):
    model, batch = trained
    options = {"steps": 20, "lr": 0.1, "eps": 1.0, "max_clean_drop": 10.0, "site": site}
    purified, report = unbackdoor.purify(model, batch, task=TASK, method="anp", **options)
    where = 0 if site == "weight" else 1
    given, now = model[where].weight, purified[where].weight
    pruned = (now == 0).reshape(len(now), -1).all(1)
    assert 0 < int(pruned.sum()) < len(pruned), report.notices
    assert torch.equal(now[~pruned], given[~pruned])
    changed = {n for n, v in purified.state_dict().items() if not torch.equal(v, model.state_dict()[n])}
    assert changed == {f"{where}.weight"}


def test_train_mode_moves_the_statistics_and_says_so():
    assert ANP(site="norm", bn="update").updates_buffers
    assert not ANP().updates_buffers
    model = network()
    options = {"steps": 3, "site": "norm", "bn": "update", "threshold": 0.0}
    purified, _ = unbackdoor.purify(model, data(), task=TASK, method="anp", **options)
    assert not torch.equal(purified[1].running_mean, model[1].running_mean)


@pytest.mark.parametrize(
    "options",
    [
        {"site": "weight", "bn": "update"},
        {"bn": "update"},
        {"eps": -1.0},
        {"alpha": 1.1},
        {"noise_steps": -1},
        {"site": "x"},
    ],
)
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(BadOption):
        ANP(**options)


@pytest.mark.parametrize(("preset", "bn"), [("paper", "frozen"), ("authors", "update")])
def test_published_settings_mask_the_scale_of_batchnorm_and_have_no_tolerance_of_ours(preset, bn):
    made = ANP.make(preset)
    assert (made.threshold, made.max_clean_drop, made.bn) == (0.2, 100.0, bn)
    for kind, ending in (("conv-bn", "1.weight"), ("mlp-layernorm", "0.weight")):
        if bn == "update" and kind != "conv-bn":
            continue
        model = tiny_models()[kind].build()
        mask = neuron_mask(model, lambda m=model, k=kind: m(tiny_models()[k].batch().inputs), made.site, [])
        assert next(iter(mask.sites)) == ending
