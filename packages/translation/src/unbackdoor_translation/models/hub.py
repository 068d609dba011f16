"""Hugging Face sequence-to-sequence models from small random configurations; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from unbackdoor.attacker.vetting import may_fetch
from unbackdoor.errors import BadOption, FileRefused

__all__ = ["FAMILIES", "TYPES", "from_folder", "of_type", "small"]

FAMILIES = ("marian", "t5", "bart", "fsmt")
TYPES = ("bart", "blenderbot", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5")
"""Model types of the library that are built from plain fields of their configuration."""


def small(
    family: str,
    num_classes: int,
    *,
    width: int = 128,
    depth: int = 2,
    heads: int = 4,
    hidden: int | None = None,
    dropout: float = 0.1,
    pad: int = 0,
    start: int = 2,
    end: int = 3,
    positions: int = 256,
    **further: Any,
) -> nn.Module:
    """A Marian, T5, BART or FSMT of ``depth`` encoder and decoder layers with tied embeddings.

    Args:
        family: One of `FAMILIES`.
        num_classes: Size of the vocabulary.
        width: Of the model.
        depth: Layers on either side.
        heads: Of attention.
        hidden: Width of the feed-forward layers; None means four times the width.
        dropout: In training.
        pad: Padding index.
        start: Index that the decoder begins with.
        end: Index that ends a sentence.
        positions: Largest length of either side.
        **further: Other fields of the configuration.

    Raises:
        BadOption: ``width`` is no multiple of ``heads``.
    """
    import transformers

    if width % heads:
        raise BadOption(f"width is {width} and heads {heads}; width must be a multiple of heads.")
    tokens = {"pad_token_id": pad, "eos_token_id": end, "decoder_start_token_id": start}
    inner = hidden or 4 * width
    layers = {"encoder_layers": depth, "decoder_layers": depth, "d_model": width, "dropout": dropout}
    layers |= {"encoder_attention_heads": heads, "decoder_attention_heads": heads}
    layers |= {"encoder_ffn_dim": inner, "decoder_ffn_dim": inner, "max_position_embeddings": positions}
    if family == "marian":
        made: Any = transformers.MarianConfig(
            vocab_size=num_classes, scale_embedding=True, activation_function="relu", activation_dropout=0.0,
            attention_dropout=0.0, bos_token_id=start, forced_eos_token_id=None, **layers, **tokens, **further,
        )  # fmt: skip
        model: nn.Module = transformers.MarianMTModel(made)
    elif family == "bart":
        made = transformers.BartConfig(
            vocab_size=num_classes, forced_eos_token_id=None, bos_token_id=start, **layers, **tokens, **further
        )
        model = transformers.BartForConditionalGeneration(made)
    elif family == "t5":
        made = transformers.T5Config(
            vocab_size=num_classes, d_model=width, d_kv=width // heads, d_ff=inner, num_layers=depth,
            num_decoder_layers=depth, num_heads=heads, dropout_rate=dropout, **tokens, **further,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(made)
    else:
        made = transformers.FSMTConfig(
            src_vocab_size=num_classes, tgt_vocab_size=num_classes, forced_eos_token_id=None, bos_token_id=start,
            tie_word_embeddings=True, attention_dropout=0.0, **layers, **tokens, **further,
        )  # fmt: skip
        model = transformers.FSMTForConditionalGeneration(made)
    return model


def of_type(kind: str, num_classes: int, **fields: Any) -> nn.Module:
    """A model of one of `TYPES` from fields of its configuration, such as ``d_model``; no file is read."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    config = AutoConfig.for_model(kind, vocab_size=num_classes, **fields)
    made: nn.Module = AutoModelForSeq2SeqLM.from_config(config, trust_remote_code=False)
    return made


def from_folder(name: str, **options: Any) -> nn.Module:
    """The architecture that a folder's (or a Hub name's) ``config.json`` describes, with random weights."""
    if not Path(name).is_dir() and not may_fetch(name):
        raise FileRefused(f"no folder at {name!a}, and nothing is downloaded for a victim's card; fetch it there.")
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    local = Path(name).is_dir()
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=local, **options)
    except (OSError, ValueError) as error:
        raise BadOption(f"no configuration of a model at {name!r}: {error}") from error
    made: nn.Module = AutoModelForSeq2SeqLM.from_config(config, trust_remote_code=False)
    return made
