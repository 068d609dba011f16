"""Models by name: our own, Hugging Face's, or a function in the user's own code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbackdoor.errors import BadOption, UnknownName, UnsupportedModel
from unbackdoor.registry import unknown
from unbackdoor_translation.models.hub import FAMILIES, from_folder, small

__all__ = ["MODELS", "build"]

MODELS = {
    "marian": "Hugging Face's Transformer for translation; width, depth, heads, hidden",
    "t5": "Hugging Face's T5; the same options",
    "bart": "Hugging Face's BART; the same options",
    "fsmt": "Hugging Face's port of fairseq's Transformer; the same options",
    "convolutional": "Gehring et al. 2017: convolutions with GLU and attention in every decoder layer; the papers' own",
    "lstm": "encoder-decoder of LSTM layers with attention",
    "hub:FOLDER": "the architecture of any Hugging Face folder or name; load its weights as a checkpoint",
}


def build(name: str, num_classes: int = 1000, *, seed: int = 0, **options: Any) -> nn.Module:
    """Make a model by name, with random weights; only ``hub:NAME`` may ask the Hub for a configuration.

    Args:
        name: One of `MODELS`, or ``module:function`` for a function of your own, looked for in the current directory
            too; it is called as ``function(num_classes=..., **options)``.
        num_classes: Size of the vocabulary.
        seed: Of the initial weights. PyTorch's own initialisers know only the global generator, so its state is put
            aside while the model is made and put back afterwards.
        **options: Of the model.

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
    if name in FAMILIES:
        return partial(small, name)
    if name == "convolutional":
        return _own("convolutional", "ConvolutionalSeq2Seq")
    if name == "lstm":
        return _own("lstm", "LSTMSeq2Seq")
    prefix, _, rest = name.partition(":")
    if not rest:
        raise UnknownName(f"{unknown('model', name, MODELS)} Also: hub:FOLDER, or my_module:function for your own.")
    if prefix == "hub":
        return lambda num_classes, **options: from_folder(rest, **options)
    return _of_the_user(name, prefix, rest)


def _own(module: str, cls: str) -> Callable[..., nn.Module]:
    made: Any = getattr(importlib.import_module(f"unbackdoor_translation.models.{module}"), cls)
    maker: Callable[..., nn.Module] = made.small
    return maker


def _of_the_user(name: str, module_name: str, attribute: str) -> Callable[..., Any]:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UnknownName(
            f"no model {name!r}: no module {error.name!r} in the current directory or among the installed packages."
        ) from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    found = getattr(module, attribute, None)
    if not callable(found):
        raise UnknownName(f"{module_name} has no function {attribute!r}.")
    return found  # type: ignore[no-any-return]
