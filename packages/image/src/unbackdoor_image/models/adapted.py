"""Architectures of both papers, with the first layers changed so that images of 32 pixels keep a map to look at.

A network for 224 pixels halves its input five times; on 32 pixels one place is left. Strides of the first layers are
taken away, and max-pools that follow them. All take other sizes too, but for the vision transformer, which asks for
``img_size``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

__all__ = ["ADAPTED"]


def _torchvision(name: str, num_classes: int, **options: Any) -> Any:
    return importlib.import_module("torchvision.models").get_model(
        name, weights=None, num_classes=num_classes, **options
    )


def _colours(module: nn.Module, in_channels: int) -> None:
    """The first convolution anew where images are not RGB."""
    if in_channels == 3:
        return
    name, first = next((n, m) for n, m in module.named_modules() if isinstance(m, nn.Conv2d))
    assert isinstance(first, nn.Conv2d)
    parent, _, leaf = name.rpartition(".")
    words: dict[str, Any] = {"stride": first.stride, "padding": first.padding, "bias": first.bias is not None}
    size: Any = first.kernel_size
    setattr(module.get_submodule(parent), leaf, nn.Conv2d(in_channels, first.out_channels, size, **words))


def _resnet(name: str, num_classes: int = 10, in_channels: int = 3, **options: Any) -> nn.Module:
    """A 3x3 convolution of stride 1 in place of 7x7 and max-pool."""
    model: Any = _torchvision(name, num_classes, **options)
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model  # type: ignore[no-any-return]


def _vgg(name: str, num_classes: int = 10, in_channels: int = 3, **options: Any) -> nn.Module:
    """With BatchNorm; one linear layer after the last map in place of three that expect 7x7."""
    model: Any = _torchvision(name, num_classes, **options)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Linear(512, num_classes)
    _colours(model, in_channels)
    return model  # type: ignore[no-any-return]


def _unstrided(name: str, layers: int, num_classes: int = 10, in_channels: int = 3, **options: Any) -> nn.Module:
    """The first ``layers`` strided convolutions without their stride."""
    model = _torchvision(name, num_classes, **options)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.stride != (1, 1) and layers:
            module.stride, layers = (1, 1), layers - 1
    _colours(model, in_channels)
    return model  # type: ignore[no-any-return]


def _densenet(name: str, num_classes: int = 10, in_channels: int = 3, **options: Any) -> nn.Module:
    """As `_resnet`."""
    model: Any = _torchvision(name, num_classes, **options)
    width = model.features.conv0.out_channels
    model.features.conv0 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
    model.features.pool0 = nn.Identity()
    return model  # type: ignore[no-any-return]


def _googlenet(num_classes: int = 10, in_channels: int = 3, **options: Any) -> nn.Module:
    """Without auxiliary heads; the first convolution and pool keep the size."""
    words = {"aux_logits": False, "init_weights": False, **options}
    model: Any = _torchvision("googlenet", num_classes, **words)
    model.conv1.conv = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    model.maxpool1 = nn.Identity()
    return model  # type: ignore[no-any-return]


def _inception(num_classes: int = 10, in_channels: int = 3, **options: Any) -> nn.Module:
    """Without the auxiliary head; the stem keeps the size, whose unpadded convolutions would leave nothing of it."""
    words = {"aux_logits": False, "init_weights": False, "transform_input": False, **options}
    model: Any = _torchvision("inception_v3", num_classes, **words)
    for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_4a_3x3"):
        layer = getattr(model, name).conv
        layer.stride, layer.padding = (1, 1), (1, 1)
    model.maxpool1 = nn.Identity()
    _colours(model, in_channels)
    return model  # type: ignore[no-any-return]


def _vit(num_classes: int = 10, in_channels: int = 3, **options: Any) -> nn.Module:
    """ViT-S (22 M parameters) on patches of 4 pixels."""
    words = {"img_size": 32, "patch_size": 4, **options}
    make: Callable[..., nn.Module] = importlib.import_module("timm").create_model
    return make("vit_small_patch16_224", pretrained=False, num_classes=num_classes, in_chans=in_channels, **words)


ADAPTED: Mapping[str, tuple[Callable[..., nn.Module], str]] = {
    "resnet34": (partial(_resnet, "resnet34"), "for Tiny-ImageNet in FIP; 3x3 stem"),
    "resnet50": (partial(_resnet, "resnet50"), "3x3 stem"),
    "vgg16": (partial(_vgg, "vgg16_bn"), "with BatchNorm, one linear layer"),
    "vgg19": (partial(_vgg, "vgg19_bn"), "with BatchNorm, one linear layer"),
    "efficientnet_b0": (partial(_unstrided, "efficientnet_b0", 2), "first two strides taken away"),
    "mobilenet_v2": (partial(_unstrided, "mobilenet_v2", 2), "first two strides taken away"),
    "densenet121": (partial(_densenet, "densenet121"), "3x3 stem"),
    "googlenet": (_googlenet, "3x3 stem, no auxiliary heads"),
    "inception_v3": (_inception, "stem keeps the size, no auxiliary head"),
    "vit_small": (_vit, "patches of 4 pixels; img_size for other sizes than 32"),
}
"""Makers by name, and how each differs from its original."""
