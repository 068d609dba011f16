"""Models by name: CNN + LSTM, torchvision's and pytorchvideo's networks for clips, or a function of the user."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from unbackdoor.builders import Maker, build_model, none_like
from unbackdoor.errors import UnknownName
from unbackdoor_video.models.encoders import ResNetEncoder, SmallEncoder
from unbackdoor_video.models.frame_lstm import FrameLSTM

__all__ = ["MODELS", "build"]


def _small(
    num_classes: int = 10, in_channels: int = 3, width: int = 16, depth: int = 3, grid: int = 2, **lstm: Any
) -> FrameLSTM:
    return FrameLSTM(SmallEncoder(in_channels, width, depth, grid), num_classes, **lstm)


def _resnet(
    name: str, num_classes: int = 10, *, weights: str | Path | None = None, small: bool = False, **lstm: Any
) -> FrameLSTM:
    return FrameLSTM(ResNetEncoder(name, weights, small=small), num_classes, **{"hidden": 512, **lstm})


_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
_OWN: dict[str, Callable[..., nn.Module]] = {
    "cnn-lstm": _small,
    **{f"{name}-lstm": partial(_resnet, name) for name in _RESNETS},
}

MODELS = {
    "cnn-lstm": "a few convolutions on each frame, then an LSTM: trains on small clips on a CPU",
    "resnet50-lstm": "the papers' network; weights=FILE starts from torchvision's ImageNet weights",
    "resnet18-lstm": "the same with ResNet-18 (also resnet34-lstm, resnet101-lstm); small=true for small frames",
    "torchvision:r3d_18": "any name of torchvision.models.video (mc3_18, r2plus1d_18, s3d, mvit_v2_s, swin3d_t)",
    "pytorchvideo:slow_r50": "slow_r50, x3d_xs and others of one input; needs the extra pytorchvideo",
}


def build(name: str, num_classes: int = 10, *, seed: int = 0, **options: Any) -> nn.Module:
    """Make a model by name; nothing is downloaded.

    What is built takes clips ``(batch, frames, channels, h, w)``. Networks of the libraries, which want channels
    before frames, get a hook that turns the clips and repeats grey frames to three channels; their class, names of
    weights and everything else are the library's.

    Args:
        name: One of `MODELS`, ``torchvision:NAME``, ``pytorchvideo:NAME``, or ``module:function`` for a function of
            your own, called as ``function(num_classes=..., **options)``.
        num_classes: Number of logits.
        seed: Of the initial weights; the global generator is left as it was.
        **options: Of the model: ``width``, ``hidden``, ``weights``, ...

    Raises:
        UnknownName: Nothing has this name.
        BadOption: The model does not take these options.
        UnsupportedModel: A function of your own returned no module.
    """
    return build_model(name, _OWN, _SOURCES, num_classes=num_classes, seed=seed, options=options, passed=_PASSED)


def _torchvision(name: str) -> Maker:
    video = importlib.import_module("torchvision.models.video")
    models = importlib.import_module("torchvision.models")
    known = models.list_models(module=video)
    if name not in known:
        raise none_like("torchvision video model", name, known)
    return partial(_turned, partial(models.get_model, name, weights=None))


_PYTORCHVIDEO = {
    "slow_r50": "8 frames of 224 pixels",
    "c2d_r50": "8 frames of 224 pixels",
    "i3d_r50": "8 frames of 224 pixels",
    "csn_r101": "32 frames of 224 pixels",
    "x3d_xs": "4 frames of 160 pixels",
    "x3d_s": "13 frames of 160 pixels",
    "x3d_m": "16 frames of 224 pixels",
}
"""Networks of pytorchvideo's hub that take one tensor, and the clips that their last pool expects."""


def _pytorchvideo(name: str) -> Maker:
    if importlib.util.find_spec("pytorchvideo") is None:
        raise UnknownName(
            f"pytorchvideo:{name} needs pytorchvideo, which is not installed: pip install "
            '"unbackdoor-video[pytorchvideo]".'
        )
    if name not in _PYTORCHVIDEO:
        raise none_like("pytorchvideo model", name, _PYTORCHVIDEO)
    maker = getattr(importlib.import_module("pytorchvideo.models.hub"), name)

    def make(num_classes: int, **options: Any) -> nn.Module:
        model: nn.Module = maker(pretrained=False, model_num_class=num_classes, head_activation=None, **options)
        return model

    return partial(_turned, make)


def _turned(maker: Maker, **options: Any) -> nn.Module:
    model: nn.Module = maker(**options)
    model.register_forward_pre_hook(_channels_first)
    return model


def _channels_first(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """From ``(batch, frames, channels, h, w)`` to ``(batch, channels, frames, h, w)``, three channels."""
    clips = inputs[0].transpose(1, 2)
    return (clips.expand(-1, 3, -1, -1, -1) if clips.shape[1] == 1 else clips, *inputs[1:])


_LSTM = frozenset({"bidirectional", "dropout", "hidden", "layers", "pool"})
_PASSED = {
    "cnn-lstm": _LSTM,
    **{f"{name}-lstm": _LSTM for name in _RESNETS},
    "torchvision": frozenset({"attention_dropout", "dropout", "stochastic_depth_prob"}),
    "pytorchvideo": frozenset({"dropout_rate", "model_depth", "width_factor", "depth_factor"}),
}
"""What a victim's card may set of the libraries' options and of the LSTM: sizes and rates, no code and no file."""

_SOURCES: dict[str, Callable[[str], Maker]] = {"torchvision": _torchvision, "pytorchvideo": _pytorchvideo}
