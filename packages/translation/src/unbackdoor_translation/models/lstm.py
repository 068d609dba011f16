"""An LSTM encoder-decoder with attention (Bahdanau et al. 2014; the multiplicative form of Luong et al. 2015)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers.modeling_outputs import BaseModelOutput

from unbackdoor_translation.models.base import EncoderDecoder, EncoderDecoderConfig, masked_softmax

__all__ = ["LSTMSeq2Seq"]


class _Encoder(nn.Module):
    main_input_name = "input_ids"

    def __init__(self, config: EncoderDecoderConfig, embed: nn.Embedding) -> None:
        super().__init__()
        self.embed, self.drop = embed, nn.Dropout(config.dropout)
        self.lstm = nn.LSTM(
            config.width, config.width // 2, config.depth, batch_first=True, bidirectional=True,
            dropout=config.dropout if config.depth > 1 else 0.0,
        )  # fmt: skip

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        embedded = self.drop(self.embed(input_ids))
        if attention_mask is None:
            return BaseModelOutput(last_hidden_state=self.lstm(embedded)[0])
        # packed, so that the backward direction begins at the last token and not in the padding
        lengths = attention_mask.sum(1).clamp(min=1).cpu()
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        hidden, _length = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=input_ids.shape[1])
        return BaseModelOutput(last_hidden_state=hidden)


class LSTMSeq2Seq(EncoderDecoder):
    """Bidirectional encoder, decoder of as many layers, attention before the output; embeddings tied on all sides."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        """Make it with PyTorch's own initialisation."""
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.width, padding_idx=config.pad_token_id)
        nn.init.normal_(self.embed.weight, std=config.width**-0.5)
        self.encoder = _Encoder(config, self.embed)
        self.bridge = nn.Linear(config.width, 2 * config.depth * config.width)
        self.lstm = nn.LSTM(
            config.width, config.width, config.depth, batch_first=True,
            dropout=config.dropout if config.depth > 1 else 0.0,
        )  # fmt: skip
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.combine = nn.Linear(2 * config.width, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, config.vocab_size)
        self.head.weight = self.embed.weight
        self.generation_config = _generation(config)

    def decode(self, prefix: Tensor, encoded: BaseModelOutput, mask: Tensor, *, last: bool = False) -> Tensor:
        """Logits ``(batch, T, vocabulary)``, with ``last`` of the last place alone."""
        memory = encoded.last_hidden_state
        there = mask.unsqueeze(2).to(memory.dtype)
        mean = (memory * there).sum(1) / there.sum(1).clamp(min=1)
        state = self.bridge(mean).tanh().unflatten(1, (2, self.config.depth, self.config.width)).permute(1, 2, 0, 3)
        hidden, _ = self.lstm(self.drop(self.embed(prefix)), (state[0].contiguous(), state[1].contiguous()))
        hidden = hidden[:, -1:] if last else hidden
        weights = masked_softmax(self.query(hidden) @ memory.transpose(1, 2), mask)
        mixed = self.combine(torch.cat([hidden, weights @ memory], dim=2)).tanh()
        logits: Tensor = self.head(self.drop(mixed))
        return logits


def _generation(config: EncoderDecoderConfig) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(
        pad_token_id=config.pad_token_id, eos_token_id=config.eos_token_id, bos_token_id=config.bos_token_id,
        decoder_start_token_id=config.decoder_start_token_id, use_cache=False,
    )  # fmt: skip
