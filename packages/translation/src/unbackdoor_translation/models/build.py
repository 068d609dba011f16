"""Models by name: our own, Hugging Face's, or a function in the user's own code."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from unbackdoor.attacker.vetting import TRUST, closed
from unbackdoor.builders import Maker, build_model
from unbackdoor.errors import UntrustedVictim
from unbackdoor_translation.models.hub import FAMILIES, TYPES, from_folder, of_type, small

__all__ = ["MODELS", "build"]

MODELS = {
    "marian": "Hugging Face's Transformer for translation; width, depth, heads, hidden",
    "t5": "Hugging Face's T5; the same options",
    "bart": "Hugging Face's BART; the same options",
    "fsmt": "Hugging Face's port of fairseq's Transformer; the same options",
    "convolutional": "Gehring et al. 2017: convolutions with GLU and attention in every decoder layer; the papers' own",
    "lstm": "encoder-decoder of LSTM layers with attention",
    "hub:FOLDER": "the architecture of any Hugging Face folder or name; load its weights as a checkpoint",
    "hub:mbart": "a type of the library from fields of its configuration, such as d_model (also m2m_100, pegasus, ...)",
}


def build(name: str, num_classes: int = 1000, *, seed: int = 0, **options: Any) -> nn.Module:
    """Make a model by name, with random weights; only ``hub:NAME`` may ask the Hub for a configuration.

    Args:
        name: One of `MODELS`, or ``module:function`` for a function of your own, looked for in the current directory
            too; it is called as ``function(num_classes=..., **options)``.
        num_classes: Size of the vocabulary.
        seed: Of the initial weights; the global generator is left as it was.
        **options: Of the model.

    Raises:
        UnknownName: Nothing has this name.
        BadOption: The model does not take these options.
        UnsupportedModel: A function of your own returned no module.
    """
    return build_model(name, _OWN, _SOURCES, num_classes=num_classes, seed=seed, options=options, passed=_PASSED)


def _own(module: str, cls: str, **options: Any) -> nn.Module:
    made: Any = getattr(importlib.import_module(f"unbackdoor_translation.models.{module}"), cls)
    model: nn.Module = made.small(**options)
    return model


def _hub(name: str) -> Maker:
    if name in TYPES and (closed() or not Path(name).is_dir()):
        return partial(of_type, name)
    if closed():
        raise UntrustedVictim(
            f"card.json asks for the model {f'hub:{name}'!a}, whose configuration is not in the victim's folder; a "
            f"card may name hub:TYPE with TYPE one of {', '.join(TYPES)}. {TRUST}."
        )
    return lambda num_classes, **options: from_folder(name, **options)


_OWN: dict[str, Maker] = {
    **{family: partial(small, family) for family in FAMILIES},
    "convolutional": partial(_own, "convolutional", "ConvolutionalSeq2Seq"),
    "lstm": partial(_own, "lstm", "LSTMSeq2Seq"),
}
_SIZES = frozenset({"depth", "dropout", "end", "kernel", "pad", "positions", "start", "width"})
_FURTHER = frozenset(
    {
        "activation_dropout", "activation_function", "attention_dropout", "d_kv", "dropout_rate", "feed_forward_proj",
        "relative_attention_max_distance", "relative_attention_num_buckets", "scale_embedding",
    }
)  # fmt: skip
_FIELDS = _FURTHER | {
    "add_final_layer_norm", "bos_token_id", "d_ff", "d_model", "decoder_attention_heads", "decoder_ffn_dim",
    "decoder_layers", "decoder_start_token_id", "dropout", "encoder_attention_heads", "encoder_ffn_dim",
    "encoder_layers", "eos_token_id", "layer_norm_epsilon", "max_position_embeddings", "num_decoder_layers",
    "num_heads", "num_layers", "pad_token_id", "share_encoder_decoder_embeddings", "tie_word_embeddings",
}  # fmt: skip
_PASSED = {
    **dict.fromkeys(FAMILIES, _FURTHER),
    "convolutional": _SIZES | {"weight_norm"},
    "lstm": _SIZES,
    "hub": _FIELDS,
}
"""What a victim's card may set beside the options that a maker names."""

_SOURCES: dict[str, Callable[[str], Maker]] = {"hub": _hub}
