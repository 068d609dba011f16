"""Models by name: a backbone of our own, of timm or of torchvision, under an ML-Decoder or a linear head."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from unbackdoor.builders import Maker, build_model, none_like
from unbackdoor.errors import BadOption
from unbackdoor_multilabel.models.ml_decoder import Backboned, MLDecoder, channels_of
from unbackdoor_multilabel.models.small import PooledLinear, SmallBackbone

__all__ = ["MODELS", "build"]

_HEADS = ("ml-decoder", "linear")
_DECODER = frozenset(inspect.signature(MLDecoder).parameters) - {"features", "num_classes"}
_SMALL = {"width": 48, "heads": 4, "hidden": 96, "dropout": 0.0}

MODELS: Mapping[str, str] = {
    "small-ml-decoder": "three convolutions and an ML-Decoder of width 48, trains on composed digits in seconds",
    "small-linear": "the same convolutions, average pool and a linear layer",
    "timm:tresnet_m": "any backbone of timm under an ML-Decoder, as in the papers; head=linear for a pool",
    "torchvision:resnet50": "any backbone of torchvision with a feature map under an ML-Decoder",
}


def build(name: str, num_classes: int = 10, *, seed: int = 0, **options: Any) -> nn.Module:
    """Make a multi-label model by name, with random weights; nothing is downloaded.

    Args:
        name: One of `MODELS`, ``timm:NAME``, ``torchvision:NAME``, or ``module:function`` for a function of your own,
            looked for in the current directory too; it is called as ``function(num_classes=..., **options)``.
        num_classes: Number of logits.
        seed: Of the initial weights; the global generator is left as it was.
        **options: ``head`` (``"ml-decoder"`` or ``"linear"``), ``in_channels``, the options of `MLDecoder`, with
            ``decoder_width`` for its ``width``, and those of the backbone.

    Raises:
        UnknownName: Nothing has this name.
        BadOption: The model does not take these options, or the architecture has no feature map.
        UnsupportedModel: A function of your own returned no module.
    """
    return build_model(name, _OWN, _SOURCES, num_classes=num_classes, seed=seed, options=options, passed=_PASSED)


def _small(num_classes: int, head: str = "ml-decoder", in_channels: int = 3, **options: Any) -> nn.Module:
    decoder, rest = _divided(options)
    backbone = SmallBackbone(in_channels=in_channels, **rest)
    return Backboned(backbone, _head(head, backbone.features, num_classes, {**_SMALL, **decoder}))


def _headed(
    make: Callable[..., nn.Module],
    num_classes: int,
    head: str = "ml-decoder",
    in_channels: int = 3,
    img_size: int | None = None,
    **options: Any,
) -> nn.Module:
    decoder, rest = _divided(options)
    backbone = make(in_channels=in_channels, **({} if img_size is None else {"img_size": img_size}), **rest)
    features = getattr(backbone, "num_features", None)
    if not isinstance(features, int):
        features = channels_of(backbone, in_channels, img_size or 64)
    return Backboned(backbone, _head(head, features, num_classes, decoder))


def _divided(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The decoder's options and the backbone's; ``decoder_width`` is the decoder's, ``width`` the backbone's."""
    names = _DECODER - {"width"}
    decoder = {key: value for key, value in options.items() if key in names}
    if "decoder_width" in options:
        decoder["width"] = options["decoder_width"]
    return decoder, {key: value for key, value in options.items() if key not in names | {"decoder_width"}}


def _head(head: str, features: int, num_classes: int, decoder: Mapping[str, Any]) -> nn.Module:
    if head not in _HEADS:
        raise BadOption(f"head is {head!r}; it must be one of {', '.join(_HEADS)}.")
    if head == "linear":
        return PooledLinear(features, num_classes)
    return MLDecoder(features, num_classes, **decoder)


class _Timm(nn.Module):
    """A model of timm without pool and classifier."""

    def __init__(self, name: str, in_channels: int, **options: Any) -> None:
        super().__init__()
        timm = importlib.import_module("timm")
        words = {"pretrained": False, "num_classes": 0, "in_chans": in_channels, "global_pool": "", **options}
        self.model: Any = timm.create_model(name, **words)
        self.num_features = int(self.model.num_features)

    def forward(self, images: Tensor) -> Tensor:
        """A feature map or tokens; maps with the channels last are turned."""
        found: Tensor = self.model(images)
        if found.ndim == 4 and found.shape[1] != self.num_features == found.shape[3]:
            return found.permute(0, 3, 1, 2)
        return found


def _timm(name: str) -> Maker:
    timm = importlib.import_module("timm")
    if not re.fullmatch(r"\w+(\.\w+)?", name) or not timm.is_model(name):
        raise none_like("timm model", name, timm.list_models())
    return partial(_headed, partial(_Timm, name))


def _torchvision_backbone(name: str, in_channels: int, **options: Any) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    words = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    whole: Any = models.get_model(name, weights=None, **words, **options)
    if in_channels != 3:
        _recolour(whole, in_channels)
    if isinstance(getattr(whole, "features", None), nn.Module):
        features: nn.Module = whole.features
        return features
    if all(hasattr(whole, part) for part in ("avgpool", "fc", "layer4")):
        parts = [child for part, child in whole.named_children() if part not in ("avgpool", "fc")]
        return nn.Sequential(*parts)
    raise BadOption(
        f"torchvision's {name} has no feature map that a head could read; take timm:NAME for transformers and others."
    )


def _recolour(module: nn.Module, in_channels: int) -> None:
    """The first convolution anew where images are not RGB."""
    name, first = next((n, m) for n, m in module.named_modules() if isinstance(m, nn.Conv2d))
    assert isinstance(first, nn.Conv2d)
    parent, _, leaf = name.rpartition(".")
    words: dict[str, Any] = {"stride": first.stride, "padding": first.padding, "bias": first.bias is not None}
    size: Any = first.kernel_size
    setattr(module.get_submodule(parent), leaf, nn.Conv2d(in_channels, first.out_channels, size, **words))


def _torchvision(name: str) -> Maker:
    models = importlib.import_module("torchvision.models")
    known = models.list_models(module=models)
    if name not in known:
        raise none_like("torchvision model", name, known)
    return partial(_headed, partial(_torchvision_backbone, name))


_OWN: dict[str, Maker] = {"small-ml-decoder": _small, "small-linear": partial(_small, head="linear")}
_HEAD = frozenset({"decoder_width", "head", "in_channels", *_DECODER} - {"width"})
_TORCHVISION = frozenset(
    {
        "dropout",
        "groups",
        "init_weights",
        "stochastic_depth_prob",
        "width_mult",
        "width_per_group",
        "zero_init_residual",
    }
)
_TIMM = frozenset(
    {
        "depth", "drop_path_rate", "drop_rate", "embed_dim", "img_size", "mlp_ratio", "num_heads", "patch_size",
        "qkv_bias", "window_size",
    }
)  # fmt: skip
_PASSED = {
    "small-ml-decoder": _HEAD | set(inspect.signature(SmallBackbone).parameters),
    "small-linear": _HEAD | set(inspect.signature(SmallBackbone).parameters),
    "torchvision": _HEAD | _TORCHVISION,
    "timm": _HEAD | _TIMM,
}
"""What a victim's card may set of head and backbone: sizes and rates, nothing that names code or a file."""

_SOURCES: dict[str, Callable[[str], Maker]] = {"timm": _timm, "torchvision": _torchvision}
