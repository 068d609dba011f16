"""Models by name: our own, torchvision's, timm's, or a function in the user's own code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbackdoor.errors import BadOption, UnknownName, UnsupportedModel
from unbackdoor.registry import unknown
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
        seed: Of the initial weights. PyTorch's own initialisers know only the global generator, so its state is put
            aside while the model is made and put back afterwards.
        **options: Of the model: ``width``, ``in_channels``, ...

    Raises:
        UnknownName: Nothing has this name.
        BadOption: The model does not take these options.
        UnsupportedModel: A function of your own returned no module.
    """
    maker = _maker(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            model = maker(num_classes=num_classes, **options)
        except TypeError as error:
            given = ", ".join(f"{key}={value!r}" for key, value in {"num_classes": num_classes, **options}.items())
            raise BadOption(f"{name} cannot be built with {given}: {error}.") from error
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(f"{name} returned a {type(model).__name__}; it must return an nn.Module.")
    return model


def _maker(name: str) -> Callable[..., Any]:
    if name in _OWN:
        return _OWN[name]
    prefix, _, rest = name.partition(":")
    if not rest:
        raise _hinted(unknown("model", name, _OWN))
    if prefix == "torchvision":
        models = importlib.import_module("torchvision.models")
        if rest not in models.list_models(module=models):
            raise _close("torchvision model", rest, models.list_models(module=models))
        return partial(models.get_model, rest, weights=None, **_without_backbone(rest))
    if prefix == "timm":
        timm = importlib.import_module("timm")
        if not timm.is_model(rest):
            raise _close("timm model", rest, timm.list_models())
        return partial(timm.create_model, rest, pretrained=False)
    return _of_the_user(name, prefix, rest)


def _without_backbone(name: str) -> dict[str, Any]:
    """Inception and GoogLeNet warn unless told how to initialise."""
    return {"init_weights": True} if name in ("googlenet", "inception_v3") else {}


def _of_the_user(name: str, module_name: str, attribute: str) -> Callable[..., Any]:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not module_name.startswith(error.name):
            raise UnknownName(f"{name}: {module_name} imports {error.name!r}, which is not installed.") from error
        raise UnknownName(
            f"no model {name!r}: no module {module_name!r} in the current directory or among the installed packages. "
            "Run from the folder that holds it, or use torchvision:NAME or timm:NAME."
        ) from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    if not callable(getattr(module, attribute, None)):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise _close(f"function in {module_name}", attribute, functions)
    found: Callable[..., Any] = getattr(module, attribute)
    return found


def _hinted(error: UnknownName) -> UnknownName:
    return UnknownName(f"{error} Also: torchvision:NAME, timm:NAME, or my_module:function for your own.")


def _close(kind: str, given: str, known: Iterable[str]) -> UnknownName:
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=5, cutoff=0.4)
    hint = f" Did you mean {', '.join(near)}?" if near else f" There are {len(names)}, such as {', '.join(names[:5])}."
    return UnknownName(f"no {kind} {given!r}.{hint}")
