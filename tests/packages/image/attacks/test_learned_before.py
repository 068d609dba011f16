"""Triggers that are learned before a victim is trained."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from unbackdoor.errors import BadOption
from unbackdoor.task import Batch
from unbackdoor_image import KIT
from unbackdoor_image.attacks.learned import adversarial, seeded, train_helper
from unbackdoor_image.attacks.lf import cosines
from unbackdoor_image.models.small_cnn import SmallCNN


def test_trojan_needs_nothing_but_the_data(data: Batch, make: Callable[..., Any]) -> None:
    """BackdoorBench issue 39: a clean model was needed that nobody had."""
    attack = make("trojan")
    with pytest.raises(BadOption, match="no trigger yet"):
        attack.trigger(data.inputs)
    attack.prepare(data, torch.Generator().manual_seed(0))
    changed = (attack.trigger(data.inputs) != data.inputs).any(1).any(0)
    assert int(changed.sum()) <= 16
    assert not bool(changed[-1].any())
    assert bool(changed[11:15, 11:15].any())


def test_trojan_square_excites_the_neurons(data: Batch, make: Callable[..., Any]) -> None:
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


def test_lf_has_no_high_frequencies(data: Batch, make: Callable[..., Any]) -> None:
    attack = make("lf", frequencies=3, eps=0.2)
    attack.prepare(data, torch.Generator().manual_seed(0))
    delta = attack.state()["delta"]
    basis = cosines(16, 16)
    basis = basis / basis.norm(dim=1, keepdim=True)
    spectrum = torch.einsum("chw,uh,vw->cuv", delta, basis, basis).square()
    assert_close(spectrum[:, :3, :3].sum(), spectrum.sum(), rtol=1e-4, atol=1e-6)
    assert float(delta.abs().max()) <= 0.2 + 1e-6


@pytest.mark.slow
def test_issba_secret_is_read_again_and_needs_no_training_to_come_back(data: Batch) -> None:
    """BackdoorBox issue 85: the poisoned test set could not be made without training again."""
    attack = KIT.attacks["issba"](steps=150, bits=9)
    attack.prepare(data, torch.Generator().manual_seed(0))
    assert attack.bit_accuracy(data.inputs) > 0.9
    back = type(attack).restore(json.loads(json.dumps(attack.options())), attack.state())
    assert_close(back.trigger(data.inputs), attack.trigger(data.inputs), rtol=0, atol=0)
    assert float((attack.trigger(data.inputs) - data.inputs).abs().max()) <= attack.eps + 1e-6


def test_clb_makes_images_hard_within_its_radius_and_changes_no_label(data: Batch, make: Callable[..., Any]) -> None:
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
