"""Models by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import unbackdoor
from unbackdoor.attacker.kit import Splits
from unbackdoor.errors import BadOption, UnknownName, UnsupportedModel
from unbackdoor.task import Batch
from unbackdoor_image import KIT, ImageTask, build
from unbackdoor_image.models.adapted import ADAPTED

pytestmark = pytest.mark.usefixtures("untrained")

OWN = ["preactresnet18", "wideresnet16_1", "smallcnn"]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32)])
def test_own_models_give_logits(name: str, channels: int, side: int) -> None:
    options = {} if name == "wideresnet16_1" else {"width": 4}
    model = build(name, 7, in_channels=channels, **options).eval()
    assert model(torch.rand(2, channels, side, side)).shape == (2, 7)


LARGE = {
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "resnet34",
    "resnet50",
    "vgg16",
    "vgg19",
    "vit_small",
}  # seconds each


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in (*OWN, *sorted(ADAPTED))]
)
def test_architectures_of_the_papers_train_and_purify_on_32_pixels(name: str) -> None:
    """One step of the trainer moves every weight, one of NFT gives another model of the same class and keys."""
    levels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples = Batch(levels, torch.arange(4))
    model = build(name, 4, **({"width": 8} if name in ("preactresnet18", "smallcnn") else {}))
    before = {key: value.clone() for key, value in model.named_parameters()}
    attack = KIT.attacks["badnets"](num_classes=4, rate=0.25)
    KIT.train(model, Splits(samples, samples, samples, tuple("0123")), ImageTask(), attack, seed=0, epochs=1)
    stuck = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert not stuck
    assert model(ImageTask().perturbable(levels)).shape == (4, 4)
    purified, report = unbackdoor.purify(
        model, samples, task=ImageTask(), method="nft", preset="paper", steps=1, batch_size=4
    )
    assert report.hash_before != report.hash_after
    assert type(purified) is type(model)
    assert list(purified.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", sorted(ADAPTED))
def test_adapted_models_keep_a_map_and_take_grey_images(name: str) -> None:
    model = build(name, 4, in_channels=1).eval()
    sides: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, out: sides.append(out.shape[-1]))
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 4)
    assert max(sides) >= 8, "the first layers leave nothing to look at"
    if name != "vit_small":
        assert max(sides) >= 16


def test_preactresnet18_is_the_standard_one() -> None:
    model = build("preactresnet18")
    assert (
        sum(p.numel() for p in model.parameters()) == 11_172_170
    )  # with the last BatchNorm of the paper, which many copies leave out
    shortcuts = [m for n, m in model.named_modules() if n.endswith("shortcut")]
    assert [type(m) for m in shortcuts] == [nn.Conv2d] * 3
    assert all(m.bias is None for m in shortcuts)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 20


def test_wideresnet16_1_has_its_parameters() -> None:
    assert sum(p.numel() for p in build("wideresnet16_1").parameters()) == 175_066


@pytest.mark.parametrize("name", OWN)
def test_seed_makes_the_weights_and_leaves_the_global_generator(name: str) -> None:
    state = torch.get_rng_state()
    first, second, other = (build(name, seed=seed).state_dict() for seed in (3, 3, 4))
    assert_close(torch.get_rng_state(), state)
    weights = [key for key in first if key.endswith("fc.weight")]
    assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(first[weights[0]], other[weights[0]])


def test_torchvision_and_timm_models_are_built_without_weights() -> None:
    squeezed = build("torchvision:squeezenet1_1", 5).eval()
    assert squeezed(torch.rand(1, 3, 64, 64)).shape == (1, 5)
    tiny = build("timm:test_vit", 5).eval()
    assert tiny.num_classes == 5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("preactresnet81", "Did you mean 'preactresnet18'"),
        ("torchvision:resnet81", "resnet18"),
        ("timm:vit_tinny_patch16_224", "vit_tiny_patch16_224"),
        ("no_such_module:build", "no module 'no_such_module'"),
        ("resnet18", "torchvision:NAME"),
        ("resnet18", "Did you mean 'torchvision:resnet18'"),
        ("torchvison:resnet18", "Did you mean 'torchvision:resnet18'"),
    ],
)
def test_unknown_names_come_with_a_hint(name: str, words: str) -> None:
    with pytest.raises(UnknownName) as caught:
        build(name)
    assert words in str(caught.value)


def test_options_that_a_model_does_not_take_are_refused() -> None:
    with pytest.raises(BadOption, match="widht=3"):
        build("smallcnn", widht=3)


def test_own_code_is_found_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks_of_a_test.py").write_text(
        "from torch import nn\n\n"
        "def build(num_classes, hidden=3):\n    return nn.Sequential(nn.Flatten(), nn.Linear(hidden, num_classes))\n\n"
        "def wrong(num_classes):\n    return 5\n"
    )
    monkeypatch.chdir(tmp_path)
    model = build("my_networks_of_a_test:build", 6, hidden=2)
    assert model(torch.rand(1, 2, 1, 1)).shape == (1, 6)
    with pytest.raises(UnsupportedModel, match="returned a int"):
        build("my_networks_of_a_test:wrong", 6)
    with pytest.raises(UnknownName, match="Did you mean 'build'"):
        build("my_networks_of_a_test:biuld", 6)
