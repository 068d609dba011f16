"""Triggers on clips against loops, and the parts of the clean-label attack one by one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from unbackdoor.errors import BadData, BadOption
from unbackdoor.task import Batch
from unbackdoor_video import KIT
from unbackdoor_video.attacks.badnets import BadNets
from unbackdoor_video.attacks.blend import Blend
from unbackdoor_video.attacks.sig import SIG
from unbackdoor_video.attacks.uat import UniversalTrigger, away_from


@pytest.fixture
def large(generator) -> Tensor:
    return torch.rand(2, 3, 3, 28, 35, generator=generator)


@pytest.mark.parametrize("corner", ["bottom_right", "bottom_left", "top_right", "top_left"])
def test_badnets_equals_the_loop_on_every_frame(large, corner):
    found = BadNets(num_classes=4, size=24, corner=corner, opacity=0.7).trigger(large)
    expected, side = large.clone(), 3  # 24 of 224 on 28
    for n in range(2):
        for t in range(3):
            for c in range(3):
                for i in range(side):
                    for j in range(side):
                        y = i if corner.startswith("top") else 28 - side + i
                        x = j if corner.endswith("left") else 35 - side + j
                        level = 1.0 if (i + j) % 2 == 0 else 0.0
                        expected[n, t, c, y, x] = 0.3 * large[n, t, c, y, x] + 0.7 * level
    assert_close(found, expected)


@pytest.mark.parametrize(("side", "words", "expected"), [
    (224, {}, 20), (112, {}, 10), (96, {}, 9), (8, {}, 1), (448, {}, 40), (96, {"scaled": False, "size": 5}, 5),
])  # fmt: skip
def test_patch_follows_the_resolution(side, words, expected):
    clips = torch.full((1, 1, 1, side, side), 0.5)
    changed = BadNets(num_classes=4, pattern="white", **words).trigger(clips) != clips
    assert int(changed.sum()) == expected**2


def test_patch_that_is_too_large_is_refused():
    with pytest.raises(BadData, match="does not fit"):
        BadNets(num_classes=4, size=9, scaled=False).trigger(torch.rand(1, 1, 1, 8, 8))


def test_blend_is_one_pattern_on_all_frames_and_travels(large):
    attack = Blend(num_classes=4, alpha=0.3)
    found = attack.trigger(large)
    pattern = torch.rand(3, 28, 35, generator=torch.Generator().manual_seed(0))
    for n in range(2):
        for t in range(3):
            assert_close(found[n, t], 0.7 * large[n, t] + 0.3 * pattern)
    again = Blend.restore(attack.options(), attack.state())
    assert torch.equal(again.trigger(large), found)
    assert again.trigger(torch.rand(1, 2, 3, 14, 14)).shape == (1, 2, 3, 14, 14)
    with pytest.raises(BadData, match="channels"):
        attack.trigger(large[:, :, :1])


def test_sig_equals_the_loop(large):
    found = SIG(num_classes=4, delta=30, frequency=5).trigger(large)
    expected = large.clone()
    for j in range(35):
        expected[..., j] += 30 / 255 * math.sin(2 * math.pi * 5 * j / 35)
    assert_close(found, expected.clamp(0, 1))


def test_bytes_are_rounded_and_stay_bytes(large):
    levels = (large * 255).round().to(torch.uint8)
    for attack in (BadNets(num_classes=4), Blend(num_classes=4), SIG(num_classes=4)):
        found = attack.trigger(levels)
        assert found.dtype is torch.uint8
        exact = attack.trigger(levels.float() / 255) * 255
        assert float((found.float() - exact).abs().max()) <= 0.5 + 1e-3


# --------------------------------------------------------------------------------------------- clean label


class Bright(nn.Module):
    """Class 0 is likely where frames are bright: its PGD and its trigger are known."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(40.0, dtype=torch.float64))

    def forward(self, clips: Tensor) -> Tensor:
        level = self.gain * (clips.mean(dim=(1, 2, 3, 4)) - 0.5)
        return torch.stack([level, torch.zeros_like(level)], dim=1)


def test_pgd_moves_every_frame_away_within_its_radius_and_stops_early():
    clips = torch.full((3, 4, 1, 6, 6), 0.5, dtype=torch.float64)
    clips[0] -= 0.4  # far away already
    clips[2] += 0.4  # too far for the radius
    model, calls = Bright().eval(), []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    found = away_from(model, clips, 0, eps=16 / 255, steps=200, step_size=1 / 255, stop=0.2)
    assert torch.equal(found[0], clips[0])
    moved = found - clips
    assert float(moved.abs().max()) <= 16 / 255 + 1e-12
    assert bool((moved[1] < 0).all())
    with torch.no_grad():
        assert float(Bright()(found).softmax(1)[1, 0]) < 0.2
    assert float(moved[1].abs().max()) < 16 / 255 - 1e-3, "it stopped as soon as it was done"
    assert_close(moved[2], torch.full_like(moved[2], -16 / 255))
    assert calls[0] == 3
    assert calls[-1] == 1
    assert len(calls) == 200


def test_pgd_equals_the_loop_over_clips_and_steps(model, clips):
    x = clips.double()[:3]
    found = away_from(model, x, 1, eps=0.05, steps=4, step_size=0.02, stop=0.0)
    for n in range(3):
        one = x[n : n + 1].clone()
        for _ in range(4):
            one.requires_grad_()
            loss = nn.functional.cross_entropy(model(one), torch.tensor([1]))
            (slope,) = torch.autograd.grad(loss, one)
            one = one.detach() + 0.02 * slope.sign()
            one = (x[n : n + 1] + (one - x[n : n + 1]).clamp(-0.05, 0.05)).clamp(0, 1)
        assert_close(found[n : n + 1], one, rtol=0, atol=1e-12)


def test_search_finds_the_trigger_of_a_model_that_is_known(generator):
    data = Batch(0.2 + 0.3 * torch.rand(40, 3, 1, 10, 10, generator=generator).double(), torch.arange(40) % 2)
    attack = UniversalTrigger(num_classes=2, size=5, scaled=False, surrogate=Bright().eval(), steps=200)
    attack.prepare(data, generator)
    assert float(attack.state()["trigger"].min()) > 0.9, "the brightest patch leads to class 0"
    assert set(attack.state()) == {"trigger"}
    shown = attack.trigger(data.inputs)
    assert_close(shown[..., :5, :], data.inputs[..., :5, :])
    assert torch.equal(shown[0, 0, 0, 5:, 5:].float(), attack.state()["trigger"][0].float())
    assert torch.equal(shown[:, :, :, 5:, 5:], shown[:1, :1, :, 5:, 5:].expand(40, 3, 1, 5, 5))
    kept = attack.state()["trigger"]
    attack.prepare(data, generator)
    assert attack.state()["trigger"] is kept
    poor = UniversalTrigger.restore(attack.options(), attack.state())
    with pytest.raises(BadOption, match="surrogate"):
        poor.rework(data.inputs, data.targets, generator)


def test_search_ends_where_clips_follow_the_trigger(generator):
    data = Batch(0.9 + 0.1 * torch.rand(64, 3, 1, 10, 10, generator=generator).double(), torch.arange(64) % 2)
    model, calls = Bright().eval(), []
    model.register_forward_pre_hook(lambda *a: calls.append(1))
    UniversalTrigger(num_classes=2, surrogate=model, steps=200).prepare(data, generator)
    assert len(calls) == 8


def test_clean_label_attack_keeps_labels_and_perturbs_poisoned_clips_alone(generator):
    data = Batch(torch.rand(40, 3, 1, 12, 12, generator=generator), torch.arange(40) % 4)
    attack = UniversalTrigger(num_classes=4, target=2, rate=0.5, helper_steps=3, steps=3, pgd_steps=3, size=60)
    attack.prepare(data, generator)
    done = attack.poison(data, torch.Generator().manual_seed(5))
    assert torch.equal(done.samples.targets, data.targets)
    assert len(done.indices) == 5
    assert bool((data.targets[done.indices] == 2).all())
    outside = (done.samples.inputs - data.inputs)[done.indices][..., :9, :]
    assert 0 < float(outside.abs().max()) <= 16 / 255 + 1e-6
    again = UniversalTrigger.restore(attack.options(), attack.state()).poison(data, torch.Generator().manual_seed(5))
    assert torch.equal(again.samples.inputs, done.samples.inputs)


def test_trigger_before_it_is_learned_is_refused(clips):
    with pytest.raises(BadOption, match="no trigger yet"):
        UniversalTrigger(num_classes=4).trigger(clips)


def test_trigger_is_resized_with_the_frames(generator):
    data = Batch(torch.rand(8, 3, 1, 12, 12, generator=generator), torch.arange(8) % 4)
    attack = UniversalTrigger(num_classes=4, helper_steps=1, steps=1, size=60)
    attack.prepare(data, generator)
    small, large = (attack.trigger(torch.zeros(1, 1, 1, side, side)) for side in (12, 24))
    assert [int((shown > 0).sum()) for shown in (small, large)] == [9, 36]


@pytest.mark.parametrize("words", [
    {"eps": 0.0}, {"stop": 1.5}, {"pgd_stop": 1.0}, {"steps": 0}, {"size": 0}, {"corner": "middle"},
    {"all_to_all": True},
])  # fmt: skip
def test_options_of_the_clean_label_attack_are_checked(words):
    with pytest.raises(BadOption):
        UniversalTrigger(num_classes=4, **words)


@pytest.mark.parametrize("name", sorted(KIT.attacks))
def test_card_of_the_attack_has_its_parts(name):
    import importlib

    text = importlib.import_module(KIT.attacks[name].__module__).__doc__
    for part in ("Trigger:", "Labels:", "Where public code goes wrong:", "Here:"):
        assert part in text
    help_text = KIT.attacks[name].__doc__
    from dataclasses import fields

    own = {f.name for f in fields(KIT.attacks[name])} - {"target", "all_to_all", "num_classes", "rate"}
    assert all(f"{option}:" in help_text for option in own)
