"""Models by name: our own, torchvision's, timm's, or a function in the user's own code."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from unbackdoor.builders import Maker, build_model, none_like
from unbackdoor_image.models.adapted import ADAPTED
from unbackdoor_image.models.preact_resnet import PreActResNet18
from unbackdoor_image.models.small_cnn import SmallCNN
from unbackdoor_image.models.wide_resnet import WideResNet

__all__ = ["MODELS", "build"]

_OWN: dict[str, Callable[..., nn.Module]] = {
    "preactresnet18": PreActResNet18,
    "wideresnet16_1": partial(WideResNet, depth=16, widen=1),
    "smallcnn": SmallCNN,
    **{name: maker for name, (maker, _) in ADAPTED.items()},
}

MODELS = {
    "preactresnet18": "the papers' network for small images; width=64 is the standard, 16 is quick on a CPU",
    "wideresnet16_1": "175,000 parameters, as in the distillation papers",
    "smallcnn": "three convolutions, trains on digits in seconds",
    **{name: f"adapted to 32 pixels: {words}" for name, (_, words) in ADAPTED.items()},
    "torchvision:resnet18": "any name of torchvision.models, without pre-trained weights",
    "timm:vit_tiny_patch16_224": "any name of timm, without pre-trained weights; options such as img_size go through",
}


def build(name: str, num_classes: int = 10, *, seed: int = 0, **options: Any) -> nn.Module:
    """Make a model by name, with random weights; nothing is downloaded.

    Args:
        name: One of `MODELS`, ``torchvision:NAME``, ``timm:NAME``, or ``module:function`` for a function of your
            own, looked for in the current directory too; it is called as ``function(num_classes=..., **options)``.
        num_classes: Number of logits.
        seed: Of the initial weights; the global generator is left as it was.
        **options: Of the model: ``width``, ``in_channels``, ...

    Raises:
        UnknownName: Nothing has this name.
        BadOption: The model does not take these options.
        UnsupportedModel: A function of your own returned no module.
    """
    return build_model(name, _OWN, _SOURCES, num_classes=num_classes, seed=seed, options=options, passed=_PASSED)


def _torchvision(name: str) -> Maker:
    models = importlib.import_module("torchvision.models")
    known = models.list_models(module=models)
    if name not in known:
        raise none_like("torchvision model", name, known)
    return partial(models.get_model, name, weights=None, **_without_backbone(name))


def _timm(name: str) -> Maker:
    timm = importlib.import_module("timm")
    if not re.fullmatch(r"\w+(\.\w+)?", name) or not timm.is_model(name):
        raise none_like("timm model", name, timm.list_models())
    return partial(timm.create_model, name, pretrained=False)


def _without_backbone(name: str) -> dict[str, Any]:
    """Inception and GoogLeNet warn unless told how to initialise."""
    return {"init_weights": True} if name in ("googlenet", "inception_v3") else {}


_TORCHVISION = frozenset(
    {
        "attention_dropout", "aux_logits", "dropout", "groups", "image_size", "init_weights", "stochastic_depth_prob",
        "transform_input", "width_mult", "width_per_group", "zero_init_residual",
    }
)  # fmt: skip
_TIMM = frozenset(
    {
        "depth", "drop_path_rate", "drop_rate", "embed_dim", "global_pool", "img_size", "in_chans", "init_values",
        "mlp_ratio", "num_heads", "output_stride", "patch_size", "proj_drop_rate", "qkv_bias", "window_size",
    }
)  # fmt: skip
_PASSED = {
    **dict.fromkeys(ADAPTED, _TORCHVISION),
    "vit_small": _TIMM,
    "torchvision": _TORCHVISION,
    "timm": _TIMM,
}
"""What a victim's card may set of the libraries' options: sizes and rates, nothing that names code or a file."""

_SOURCES: dict[str, Callable[[str], Maker]] = {"torchvision": _torchvision, "timm": _timm}
