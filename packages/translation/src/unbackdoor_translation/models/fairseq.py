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

from unbackdoor.checkpoint import read_content
from unbackdoor.checkpoint.archives import damaged
from unbackdoor.checkpoint.fitting import check_finite, check_kinds
from unbackdoor.errors import BadData, CheckpointMismatch, UnsupportedModel

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
_LONGEST = 100_000


def load_fairseq(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The Transformer of a fairseq checkpoint as an FSMT in eval mode, and the arguments that it was trained with.

    fairseq's dictionaries put ``<s>``, ``<pad>``, ``</s>``, ``<unk>`` at 0 to 3, and its decoder starts with ``</s>``.

    Raises:
        FileRefused: There is no such file.
        UnsafeCheckpoint: The file holds more than tensors and plain values, or is damaged.
        TooLarge: It declares more than the limits allow.
        UnsupportedModel: It is no Transformer of the post-norm or pre-norm kind that FSMT knows.
        CheckpointMismatch: A weight is missing, of another shape, or holds no floats.
        NonFinite: A weight is NaN or infinite.
    """
    content = read_content(path, lambda name: name.startswith("fairseq.")).tree
    path = Path(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointMismatch(f"{path} is no fairseq checkpoint: it has no state dict under 'model'.")
    with damaged(path, "give a checkpoint as fairseq wrote it"):
        return _read(path, content)


def _read(path: Path, content: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    arguments = _arguments(content)
    state = renamed(content["model"])
    model = _built(state, arguments)
    state.setdefault(_OUTPUT, state[_TABLES[1]])
    check_kinds(path, state, model.state_dict())
    check_finite(path, state, model)
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
        if not isinstance(name, str) or not isinstance(value, Tensor) or _LEFT_OUT.search(name):
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
        given = cfg.get("model") if isinstance(cfg, dict) else None
    if isinstance(given, argparse.Namespace):
        return dict(vars(given))
    return dict(given) if isinstance(given, dict) else {}


def _built(state: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> nn.Module:
    import transformers

    tables = [state.get(name) for name in _TABLES]
    if tables[0] is None or tables[1] is None or tables[0].ndim != 2 or not tables[0].numel() or tables[1].ndim != 2:
        names = ", ".join(list(state)[:5])
        raise UnsupportedModel(f"the checkpoint has no token embeddings of encoder and decoder (its tensors: {names}).")
    if "model.encoder.layer_norm.weight" in state:
        raise UnsupportedModel("the Transformer normalises before its layers (pre-norm), which FSMT does not.")
    depth = {side: _depth(state, side, tables[0].shape[1]) for side in ("encoder", "decoder")}
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
        max_position_embeddings=_positions(arguments),
        dropout=float(arguments.get("dropout", 0.1)),
        tie_word_embeddings=False,
        forced_eos_token_id=None,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    model: nn.Module = transformers.FSMTForConditionalGeneration(config)
    return model


def _depth(state: Mapping[str, Tensor], side: str, width: int) -> int:
    """Number of layers, each of which must be in the file before memory is taken for it.

    Raises:
        CheckpointMismatch: One is missing, or of another width.
    """
    layers = {int(m[1]) for name in state if (m := re.match(rf"model\.{side}\.layers\.(\d{{1,6}})\.", name))}
    if not layers:
        raise CheckpointMismatch(f"the checkpoint has no layers in its {side}; give one as fairseq wrote it.")
    for layer in range(len(layers)):
        where = f"model.{side}.layers.{layer}"
        query, inner = state.get(f"{where}.self_attn.q_proj.weight"), state.get(f"{where}.fc1.weight")
        if query is None or query.shape != (width, width) or inner is None or inner.shape[1:] != (width,):
            raise CheckpointMismatch(
                f"layer {layer} of the {side} has no attention or no fc1 of width {width}, which the token embeddings "
                "have; give a checkpoint as fairseq wrote it."
            )
    return len(layers)


def _positions(arguments: Mapping[str, Any]) -> int:
    """The longest sequence, for which positions are computed.

    Raises:
        BadData: It is no sensible length.
    """
    count = arguments.get("max_source_positions", 1024)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _LONGEST:
        raise BadData(f"max_source_positions is {str(count)[:40]}; it must be a whole number up to {_LONGEST:,}.")
    return count
