"""The three attacks: what their triggers do to pixels, and what the poisoning does to samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.testing import assert_close

from unbackdoor.attacker.attack import Attack
from unbackdoor.errors import BadData, BadOption, FileRefused
from unbackdoor.evaluate import attack_metrics
from unbackdoor.task import Batch
from unbackdoor_image import KIT, ImageTask

VARIANTS = [
    ("badnets", {}),
    ("badnets", {"pattern": "white", "opacity": 0.6, "corner": "top_left", "size": 2}),
    ("blend", {}),
    ("blend", {"flavour": "gaussian"}),
    ("blend", {"flavour": "picture"}),
    ("sig", {"delta": 40.0}),
]
NAMES = [f"{name}-{place}" for place, (name, _) in enumerate(VARIANTS)]


@pytest.fixture(params=VARIANTS, ids=NAMES)
def attack(request: pytest.FixtureRequest) -> Attack:
    name, options = request.param
    made: Attack = KIT.attacks[name](**options)
    return made


def test_attacks_are_found_by_their_files() -> None:
    assert {"badnets", "blend", "sig"} <= set(KIT.attacks)


@pytest.mark.parametrize("shape", [(5, 3, 32, 32), (4, 1, 8, 8), (2, 3, 17, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_trigger_keeps_form_and_range(attack: Attack, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    clean = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    clean = (clean * 255).round().to(torch.uint8) if dtype is torch.uint8 else clean.to(dtype)
    before = clean.clone()
    triggered = attack.trigger(clean)
    assert triggered.shape == shape
    assert triggered.dtype is dtype
    assert_close(clean, before, rtol=0, atol=0)
    assert not torch.equal(triggered, clean)
    assert float(triggered.min()) >= 0
    assert float(triggered.max()) <= (255 if dtype is torch.uint8 else 1)


def test_trigger_of_uint8_is_that_of_floats(attack: Attack, images: Tensor) -> None:
    levels = (images * 255).round().to(torch.uint8)
    assert_close(attack.trigger(levels).float() / 255, attack.trigger(levels.float() / 255), rtol=0, atol=0.51 / 255)


def test_trigger_repeats(attack: Attack, images: Tensor) -> None:
    again = type(attack)(**attack.options())
    assert_close(attack.trigger(images), attack.trigger(images), rtol=0, atol=0)
    assert_close(attack.trigger(images), again.trigger(images), rtol=0, atol=0)
    assert_close(attack.trigger(images)[3:5], attack.trigger(images[3:5]), rtol=0, atol=0)


def test_attack_comes_back_from_safetensors(attack: Attack, images: Tensor, tmp_path: Path) -> None:
    triggered = attack.trigger(images)
    safetensors.torch.save_file(attack.state(), tmp_path / "attack.safetensors")
    restored = type(attack).restore(attack.options(), safetensors.torch.load_file(tmp_path / "attack.safetensors"))
    assert restored.options() == attack.options()
    assert_close(restored.trigger(images), triggered, rtol=0, atol=0)


def test_badnets_changes_its_corner_alone(images: Tensor) -> None:
    patched = KIT.attacks["badnets"](size=3).trigger(images)
    assert_close(patched[0, 0, -3:, -3:], torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]]), rtol=0, atol=0)
    assert_close(patched[..., :-3, :], images[..., :-3, :], rtol=0, atol=0)
    assert_close(patched[..., :-3], images[..., :-3], rtol=0, atol=0)


def test_badnets_opacity_mixes(images: Tensor) -> None:
    patched = KIT.attacks["badnets"](size=2, pattern="white", opacity=0.6, corner="top_left").trigger(images)
    assert_close(patched[..., :2, :2], 0.4 * images[..., :2, :2] + 0.6)


def test_blend_is_the_formula(images: Tensor) -> None:
    attack = KIT.attacks["blend"](alpha=0.3)
    triggered = attack.trigger(images)
    assert_close(triggered, 0.7 * images + 0.3 * attack.state()["pattern"])


def test_blend_keeps_its_pattern_for_other_sizes(images: Tensor) -> None:
    attack = KIT.attacks["blend"]()
    attack.trigger(images)
    kept = attack.state()["pattern"].clone()
    attack.trigger(torch.rand(2, 3, 16, 16))
    assert_close(attack.state()["pattern"], kept, rtol=0, atol=0)
    with pytest.raises(BadData, match="3 channels, the images have 1"):
        attack.trigger(torch.rand(2, 1, 8, 8))


def test_blend_reads_a_picture(images: Tensor, tmp_path: Path, png: Callable[..., bytes]) -> None:
    (tmp_path / "grey.png").write_bytes(png(51))
    attack = KIT.attacks["blend"](flavour="picture", picture=str(tmp_path / "grey.png"))
    assert_close(attack.trigger(images), 0.8 * images + 0.2 * 0.2)
    with pytest.raises(FileRefused, match="no picture"):
        KIT.attacks["blend"](flavour="picture", picture=str(tmp_path / "none.png")).trigger(images)


def test_sig_is_the_formula(images: Tensor) -> None:
    triggered = KIT.attacks["sig"](delta=20.0, frequency=3.0).trigger(images)
    for column in range(8):
        wave = 20 / 255 * math.sin(2 * math.pi * 3 * column / 8)
        assert_close(triggered[..., column], (images[..., column] + wave).clamp(0, 1))


def test_sig_that_vanishes_is_refused() -> None:
    with pytest.raises(BadData, match="zero in every column"):
        KIT.attacks["sig"](frequency=6.0).trigger(torch.rand(1, 1, 12, 12))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("badnets", {"size": 0}, "size is 0"),
        ("badnets", {"pattern": "dots"}, "checkerboard, white"),
        ("badnets", {"corner": "middle"}, "bottom_right"),
        ("badnets", {"opacity": 0.0}, "opacity is 0.0"),
        ("blend", {"alpha": 1.5}, "alpha is 1.5"),
        ("blend", {"flavour": "kitty"}, "noise, gaussian, picture"),
        ("sig", {"delta": -1.0}, "delta is -1.0"),
        ("sig", {"all_to_all": True}, "all_to_all"),
    ],
)
def test_options_that_make_no_sense_are_refused(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(BadOption) as caught:
        KIT.attacks[name](**options)
    assert words in str(caught.value)


def test_patch_larger_than_the_image_is_refused(images: Tensor) -> None:
    with pytest.raises(BadData, match="does not fit"):
        KIT.attacks["badnets"](size=9).trigger(images)


@pytest.fixture
def hundred(generator: torch.Generator) -> Batch:
    return Batch(torch.rand(100, 3, 8, 8, generator=generator), torch.arange(100) % 10)


@pytest.mark.parametrize("all_to_all", [False, True])
@pytest.mark.parametrize("name", ["badnets", "blend"])
def test_poison_changes_exactly_the_chosen_samples(
    name: str, all_to_all: bool, hundred: Batch, generator: torch.Generator
) -> None:
    attack = KIT.attacks[name](rate=0.13, all_to_all=all_to_all, target=3)
    poisoned = attack.poison(hundred, generator)
    changed = (poisoned.samples.inputs != hundred.inputs).flatten(1).any(dim=1).nonzero().flatten()
    assert_close(changed, poisoned.indices)
    assert len(changed) == 13
    wanted = (hundred.targets + 1) % 10 if all_to_all else torch.full_like(hundred.targets, 3)
    assert_close(poisoned.samples.targets[changed], wanted[changed])
    rest = torch.ones(100, dtype=torch.bool)
    rest[changed] = False
    assert_close(poisoned.samples.targets[rest], hundred.targets[rest])
    assert not (hundred.targets[changed] == 3).any() or all_to_all


def test_clean_label_attack_poisons_the_target_class_alone(hundred: Batch, generator: torch.Generator) -> None:
    poisoned = KIT.attacks["sig"](target=4, rate=0.8).poison(hundred, generator)
    assert len(poisoned.indices) == 8
    assert_close(hundred.targets[poisoned.indices], torch.full((8,), 4))
    assert_close(poisoned.samples.targets, hundred.targets)


class _Constant(torch.nn.Module):
    def __init__(self, answer: int) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(answer), 10).float())

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(len(x), 10)


@pytest.mark.parametrize(("answer", "asr", "lcr"), [(0, 100.0, 0.0), (2, 0.0, 100 / 9)])
def test_success_rate_leaves_out_the_target_class(answer: int, asr: float, lcr: float, hundred: Batch) -> None:
    found = attack_metrics(_Constant(answer), hundred, ImageTask(), KIT.attacks["badnets"](target=0))
    assert_close(found["asr"], asr)
    assert_close(found["lcr"], lcr)


def test_all_to_all_counts_every_class(hundred: Batch) -> None:
    found = attack_metrics(_Constant(2), hundred, ImageTask(), KIT.attacks["badnets"](all_to_all=True))
    assert_close(found["asr"], 10.0)
    assert_close(found["lcr"], 10.0)
