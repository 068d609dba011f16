"""Real architectures that compute with weights in ways of their own: what is tuned is what is written out."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch.testing import assert_close

import unbackdoor
from unbackdoor.defender.reparam import NeuronMask, SpectralShift, WeightMask
from unbackdoor.errors import NothingTrainable
from unbackdoor.task import Batch
from unbackdoor_image import ImageTask

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

_VIT = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 16, "num_heads": 2}
_WINDOWS = {"img_size": 32, "patch_size": 4, "window_size": 4, "depths": (1, 1), "embed_dim": 8, "num_heads": (2, 2)}
QUICK = {
    "beit_base_patch16_224": _VIT,
    "eva02_tiny_patch14_224": _VIT,
    "swinv2_tiny_window8_256": _WINDOWS,
    "vit_tiny_patch16_224": _VIT,
}
SLOW = {
    "beitv2_base_patch16_224": _VIT,
    "cait_xxs24_224": _VIT,
    "coat_tiny": {"img_size": 32},
    "convnextv2_atto": {},
    "deit3_small_patch16_224": _VIT,
    "edgenext_xx_small": {},
    "efficientformerv2_s0": {"img_size": 224},
    "eva02_base_patch14_224": _VIT,
    "fastvit_t8": {},
    "levit_128s": {"img_size": 224},
    "mobilevit_xxs": {},
    "nfnet_l0": {},
    "resnetv2_50x1_bit": {},
    "swin_tiny_patch4_window7_224": _WINDOWS,
    "swinv2_cr_tiny_224": _WINDOWS,
    "xcit_nano_12_p16_224": {"img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 2},
}


def windows(version):
    from torchvision.models import swin_transformer

    words = {} if version == 1 else {
        "block": swin_transformer.SwinTransformerBlockV2, "downsample_layer": swin_transformer.PatchMergingV2,
    }  # fmt: skip
    return torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=3, **words)


def made(name):
    """The model in float64, with no branch that begins at zero, and images for it."""
    words = {**QUICK, **SLOW}.get(name, {})
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = windows(int(name[-1])) if name.startswith("window") else timm.create_model(name, num_classes=3, **words)
        for value in model.parameters():
            if value.ndim <= 1 or not bool(value.any()):
                value.data += 0.05 * torch.randn_like(value)
        side = words.get("img_size", 32 if name.startswith("window") else 64)
        return model.double().eval(), torch.rand(2, 3, side, side, dtype=torch.float64)


def check_folding(name, handles):
    model, images = made(name)
    before, given = copy.deepcopy(model.state_dict()), model(images).detach()
    for cls in handles:
        handle = cls(model, lambda: model(images))
        generator = torch.Generator().manual_seed(1)
        for value in handle.parameters().values():
            value.data += torch.empty_like(value).uniform_(-0.2, 0.0, generator=generator)
        with handle:
            attached = model(images).detach()
        assert_close(model.state_dict(), before, rtol=0, atol=0)
        with handle:
            handle.fold_()
        assert_close(model(images).detach(), attached, rtol=0, atol=1e-10)
        assert not torch.equal(attached, given)
        model.load_state_dict(before)


@pytest.mark.parametrize("name", ["window1", "window2", *QUICK])
def test_attached_and_folded_models_agree(name):
    check_folding(name, [NeuronMask, SpectralShift, WeightMask])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_attached_and_folded_models_agree_for_many_families(name):
    check_folding(name, [NeuronMask, SpectralShift])


@pytest.mark.parametrize(
    ("name", "method"),
    [("window1", "nft"), ("swinv2_tiny_window8_256", "f-fip"), ("beit_base_patch16_224", "ft"),
     ("eva02_tiny_patch14_224", "nft")],
)  # fmt: skip
def test_such_models_are_purified(name, method):
    model, images = made(name)
    batch = Batch(images.float().repeat(3, 1, 1, 1), torch.arange(6) % 3)
    words = {"steps": 1, "batch_size": 4, "anyway": True}
    found, report = unbackdoor.purify(model.float(), batch, task=ImageTask(), method=method, **words)
    assert report.trainable > 0
    assert list(found.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("cls", ["StdConv2d", "ScaledStdConv2d"])
def test_masks_on_standardised_convolutions_are_left_out_and_named(cls):
    from timm import layers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            getattr(layers, cls)(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
            torch.nn.Linear(4, 3),
        ).eval()  # fmt: skip
    images = torch.rand(2, 3, 8, 8)
    mask = NeuronMask(model, lambda: model(images))
    assert set(mask.sites) == {"4.weight"}
    assert any("divides a factor" in text and "0.weight" in text for text in mask.notices)
    with pytest.raises(NothingTrainable, match=r"0\.weight"):
        NeuronMask(model, lambda: model(images), skip=["4.*"])


@pytest.mark.parametrize("name", ["nf_resnet26", "nf_regnet_b0"])
def test_masks_on_whole_normaliser_free_networks_stand_on_no_standardised_convolution(name):
    """Their residual branches begin with a gain of 0, so that no answer and no gradient tells."""
    import timm
    from timm import layers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=3).eval()
    images = torch.rand(2, 3, 32, 32)
    mask = NeuronMask(model, lambda: model(images))
    assert not any(isinstance(layer, layers.ScaledStdConv2d) for s in mask.sites.values() for layer, _ in s.owners)
    assert any("divides a factor" in text for text in mask.notices)


def test_a_vision_transformer_at_another_size_is_told_with_its_shapes():
    model = torchvision.models.VisionTransformer(32, 8, 1, 2, 8, 8, num_classes=3)
    batch = Batch(torch.rand(6, 3, 24, 24), torch.arange(6) % 3)
    for call in (lambda: unbackdoor.purify(model, batch, task=ImageTask(), method="ft", anyway=True),
                 lambda: unbackdoor.evaluate(model, batch, ImageTask())):  # fmt: skip
        with pytest.raises(unbackdoor.errors.BadData, match=r"\(6, 3, 24, 24\).*Wrong image height.*VisionTransformer"):
            call()
