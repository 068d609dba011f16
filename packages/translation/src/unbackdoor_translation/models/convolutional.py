"""The convolutional sequence-to-sequence model of Gehring et al. (2017, arXiv 1705.03122), the papers' architecture.

Convolutions with gated linear units, residual sums scaled by sqrt(1/2), attention in every decoder layer, and weight
normalisation of all layers but the tables (Sec. 3.5). The last is a form of training, so `weight_normalised` puts it on
for as long as it lasts; outside, weights are plain, and so are checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from transformers.modeling_outputs import BaseModelOutput

from unbackdoor.errors import BadData
from unbackdoor_translation.models.base import EncoderDecoder, EncoderDecoderConfig, masked_softmax
from unbackdoor_translation.models.lstm import _generation

__all__ = ["ConvolutionalSeq2Seq"]

_HALF = math.sqrt(0.5)


class _Embedding(nn.Module):
    """Tokens and their positions, counted from 0."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.width, padding_idx=config.pad_token_id)
        self.positions = nn.Embedding(config.positions, config.width)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, tokens: Tensor, first: int = 0) -> Tensor:
        """``first`` is the position of the first token."""
        length = first + tokens.shape[1]
        if length > self.positions.num_embeddings:
            raise BadData(
                f"a sentence of {length} tokens is longer than the model's {self.positions.num_embeddings} "
                "positions; cut it (max_tokens, max_length) or build the model with positions=..."
            )
        places = torch.arange(first, length, device=tokens.device).expand_as(tokens)
        embedded: Tensor = self.tokens(tokens) + self.positions(places)
        return embedded


def _convolution(config: EncoderDecoderConfig, padding: int) -> nn.Conv1d:
    layer = nn.Conv1d(config.width, 2 * config.width, config.kernel, padding=padding)
    # Sec. 3.5: the gate keeps the variance where weights have 4p / (k d)
    std = math.sqrt(4 * (1 - config.dropout) / (config.kernel * config.width))
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class _Encoder(nn.Module):
    """Keys and values of the attention, side by side: ``(batch, S, 2 width)``."""

    main_input_name = "input_ids"

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.embedding, self.drop = _Embedding(config), nn.Dropout(config.dropout)
        self.enter, self.leave = nn.Linear(config.width, config.width), nn.Linear(config.width, config.width)
        self.layers = nn.ModuleList(_convolution(config, config.kernel // 2) for _ in range(config.depth))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        embedded = self.drop(self.embedding(input_ids))
        there = 1.0 if attention_mask is None else attention_mask.unsqueeze(2).to(embedded.dtype)
        hidden = self.enter(embedded)
        for layer in self.layers:
            gated = functional.glu(layer(self.drop(hidden * there).transpose(1, 2)).transpose(1, 2), dim=2)
            hidden = (hidden + gated) * _HALF
        keys = self.leave(hidden) * there
        values = (keys + embedded * there) * _HALF
        return BaseModelOutput(last_hidden_state=torch.cat([keys, values], dim=2))


class ConvolutionalSeq2Seq(EncoderDecoder):
    """Encoder and decoder of ``depth`` convolutions each; input and output embeddings of the decoder are tied."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        """Make it with the paper's initialisation."""
        super().__init__(config)
        self.encoder = _Encoder(config)
        self.embedding, self.drop = _Embedding(config), nn.Dropout(config.dropout)
        self.enter = nn.Linear(config.width, config.width)
        self.layers = nn.ModuleList(_convolution(config, 0) for _ in range(config.depth))
        self.queries = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.depth))
        self.contexts = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.depth))
        self.leave = nn.Linear(config.width, config.width)
        self.head = nn.Linear(config.width, config.vocab_size)
        self.head.weight = self.embedding.tokens.weight
        self.generation_config = _generation(config)

    @classmethod
    def small(cls, num_classes: int, *, weight_norm: bool = True, **options: Any) -> Self:
        """See `EncoderDecoder.small`; ``weight_norm`` says whether `weight_normalised` does anything."""
        made = super().small(num_classes, **options)
        made.config.weight_norm = weight_norm
        return made

    @contextmanager
    def weight_normalised(self) -> Iterator[None]:
        """Inside, every convolution and linear layer learns the length and the direction of its neurons apart.

        Salimans and Kingma 2016, as Gehring et al. use it. The output layer is a table here, tied to the embeddings,
        and stays as it is. Afterwards the weights are plain parameters of the values reached.
        """
        chosen = [m for m in self.modules() if isinstance(m, nn.Linear | nn.Conv1d) and m is not self.head]
        layers = chosen if getattr(self.config, "weight_norm", True) else []
        for layer in layers:
            parametrizations.weight_norm(layer, dim=0)
        try:
            yield
        finally:
            for layer in layers:
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
                layer.register_parameter("bias", layer._parameters.pop("bias"))  # keys in the order that they had

    def decode(self, prefix: Tensor, encoded: BaseModelOutput, mask: Tensor, *, last: bool = False) -> Tensor:
        """Logits ``(batch, T, vocabulary)``; with ``last`` those of the last place.

        The last place sees ``depth (kernel - 1) + 1`` tokens of the prefix, so no others are read for it. Convolutions
        then put zeros in front of tokens that are not the first, which changes every place but the last.
        """
        first = max(0, prefix.shape[1] - 1 - len(self.layers) * (self.config.kernel - 1)) if last else 0
        assert encoded.last_hidden_state is not None
        keys, values = encoded.last_hidden_state.chunk(2, dim=2)
        length = mask.sum(1).clamp(min=1).view(-1, 1, 1).to(keys.dtype)
        embedded = self.drop(self.embedding(prefix[:, first:], first))
        hidden = self.enter(embedded)
        for layer, query, context in zip(self.layers, self.queries, self.contexts, strict=True):
            causal = functional.pad(self.drop(hidden).transpose(1, 2), (self.config.kernel - 1, 0))
            gated = functional.glu(layer(causal).transpose(1, 2), dim=2)
            asked = (query(gated) + embedded) * _HALF
            found = masked_softmax(asked @ keys.transpose(1, 2), mask) @ values * length.sqrt()
            hidden = ((gated + context(found)) * _HALF + hidden) * _HALF
        logits: Tensor = self.head(self.drop(self.leave(hidden[:, -1:] if last else hidden)))
        return logits
