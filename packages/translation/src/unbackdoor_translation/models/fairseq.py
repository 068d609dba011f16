"""Transformers of fairseq, read by the format of their checkpoints; fairseq itself is not imported.

A checkpoint is a dictionary with ``model`` (the state dict) and ``args`` (an ``argparse.Namespace``) or ``cfg`` (a
dictionary). The weights go into Hugging Face's port of that Transformer, FSMT. Attention of older versions is one
fused ``in_proj_weight``, on the attention or on the layer itself; it is cut into query, key and value.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.errors import CheckpointMismatch, FileRefused, UnsafeCheckpoint, UnsupportedModel

__all__ = ["load_fairseq", "renamed"]

_LEFT_OUT = re.compile(
    r"(^(encoder|decoder)\.version$)|(_float_tensor$)|(^(encoder|decoder)_embed_tokens\.)|(\.embed_positions\.weights$)"
)
_FUSED = re.compile(
    r"^(?P<layer>.*?layers\.\d+)(?P<attention>\.(self_attn|encoder_attn))?\.in_proj_(?P<kind>weight|bias)$"
)
_OUTER = re.compile(r"^(?P<layer>.*?layers\.\d+)\.out_proj[._](?P<kind>weight|bias)$")


_TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
_OUTPUT = "model.decoder.output_projection.weight"


def load_fairseq(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The Transformer of a fairseq checkpoint as an FSMT in eval mode, and the arguments that it was trained with.

    fairseq's dictionaries put ``<s>``, ``<pad>``, ``</s>``, ``<unk>`` at 0 to 3, and its decoder starts with ``</s>``.

    Raises:
        FileRefused: There is no such file.
        UnsafeCheckpoint: The file holds more than tensors and plain values.
        UnsupportedModel: It is no Transformer of the post-norm or pre-norm kind that FSMT knows.
        CheckpointMismatch: A weight is missing or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise FileRefused(f"no checkpoint at {path}.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file leads torch's unpickler into errors of any kind
        raise UnsafeCheckpoint(f"{path} is refused: it holds more than tensors and arguments ({error}).") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
        raise CheckpointMismatch(f"{path} is no fairseq checkpoint: it has no state dict under 'model'.")
    arguments = _arguments(content)
    state = renamed(content["model"])
    model = _built(state, arguments)
    state.setdefault(_OUTPUT, state[_TABLES[1]])
    try:
        found = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointMismatch(f"{path} does not fit an FSMT of its own sizes: {error}") from error
    missing = [name for name in found.missing_keys if "embed_positions" not in name]  # sinusoids are computed
    if missing or found.unexpected_keys:
        raise CheckpointMismatch(
            f"{path} does not fit: missing {missing[:8] or 'none'}, unexpected {found.unexpected_keys[:8] or 'none'}."
        )
    _tie(model, state)
    return model.eval(), arguments


def renamed(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Fairseq's names as FSMT's, with fused attention cut apart: rows ``[query; key; value]``."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or _LEFT_OUT.search(name):
            continue
        fused, outer = _FUSED.match(name), _OUTER.match(name)
        if fused:
            where = f"model.{fused['layer']}{fused['attention'] or '.self_attn'}"
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                found[f"{where}.{part}_proj.{fused['kind']}"] = rows.clone()
        elif outer:
            found[f"model.{outer['layer']}.self_attn.out_proj.{outer['kind']}"] = value
        else:
            flat = re.sub(r"(layers\.\d+\.fc[12])_(weight|bias)$", r"\1.\2", name)
            found[f"model.{flat}"] = value
    return found


def _tie(model: Any, state: Mapping[str, Tensor]) -> None:
    """Share what is equal in the checkpoint, which stores shared embeddings once for each use."""
    inner = model.model
    if torch.equal(state[_OUTPUT], state[_TABLES[1]]):
        inner.decoder.output_projection.weight = inner.decoder.embed_tokens.weight
    if torch.equal(state[_TABLES[0]], state[_TABLES[1]]):
        inner.encoder.embed_tokens.weight = inner.decoder.embed_tokens.weight


def _arguments(content: Mapping[str, Any]) -> dict[str, Any]:
    given = content.get("args")
    if given is None:
        cfg = content.get("cfg")
        given = cfg.get("model") if isinstance(cfg, Mapping) else None
    if isinstance(given, argparse.Namespace):
        return dict(vars(given))
    return dict(given) if isinstance(given, Mapping) else {}


def _built(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> nn.Module:
    import transformers

    tables = [state.get(name) for name in _TABLES]
    if tables[0] is None or tables[1] is None:
        names = ", ".join(list(state)[:5])
        raise UnsupportedModel(f"the checkpoint has no token embeddings of encoder and decoder (its tensors: {names}).")
    if "model.encoder.layer_norm.weight" in state:
        raise UnsupportedModel("the Transformer normalises before its layers (pre-norm), which FSMT does not.")
    depth = {
        side: 1 + max(int(m[1]) for name in state if (m := re.match(rf"model\.{side}\.layers\.(\d+)\.", name)))
        for side in ("encoder", "decoder")
    }
    config = transformers.FSMTConfig(
        langs=["source", "target"],
        src_vocab_size=tables[0].shape[0],
        tgt_vocab_size=tables[1].shape[0],
        d_model=tables[0].shape[1],
        encoder_layers=depth["encoder"],
        decoder_layers=depth["decoder"],
        encoder_ffn_dim=state["model.encoder.layers.0.fc1.weight"].shape[0],
        decoder_ffn_dim=state["model.decoder.layers.0.fc1.weight"].shape[0],
        encoder_attention_heads=int(arguments.get("encoder_attention_heads", 8)),
        decoder_attention_heads=int(arguments.get("decoder_attention_heads", 8)),
        activation_function=str(arguments.get("activation_fn") or "relu"),
        scale_embedding=not arguments.get("no_scale_embedding", False),
        max_position_embeddings=int(arguments.get("max_source_positions", 1024)),
        dropout=float(arguments.get("dropout", 0.1)),
        tie_word_embeddings=False,
        forced_eos_token_id=None,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    model: nn.Module = transformers.FSMTForConditionalGeneration(config)
    return model
