"""What our own encoder-decoders share: Hugging Face's interface, so that its greedy and beam search serve them too."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

__all__ = ["EncoderDecoder", "EncoderDecoderConfig"]


class EncoderDecoderConfig(PretrainedConfig):  # type: ignore[misc]
    """Sizes of our own models."""

    model_type = "unbackdoor-encoder-decoder"
    is_encoder_decoder = True

    def __init__(
        self,
        vocab_size: int = 1000,
        width: int = 128,
        depth: int = 2,
        kernel: int = 3,
        dropout: float = 0.1,
        positions: int = 256,
        **further: Any,
    ) -> None:
        """Keep them."""
        self.vocab_size, self.width, self.depth = vocab_size, width, depth
        self.kernel, self.dropout, self.positions = kernel, dropout, positions
        self.num_hidden_layers = depth
        self.use_cache = False
        further.setdefault("is_encoder_decoder", True)
        further.setdefault("tie_word_embeddings", False)
        super().__init__(**further)


class EncoderDecoder(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """An encoder module ``encoder(input_ids, attention_mask)`` and a decoder that a subclass writes."""

    config_class = EncoderDecoderConfig
    main_input_name = "input_ids"
    base_model_prefix = ""
    _supports_sdpa = False

    encoder: nn.Module

    @classmethod
    def small(
        cls,
        num_classes: int,
        *,
        width: int = 128,
        depth: int = 2,
        kernel: int = 3,
        dropout: float = 0.1,
        positions: int = 256,
        pad: int = 0,
        start: int = 2,
        end: int = 3,
    ) -> Self:
        """A model for ``num_classes`` tokens.

        Args:
            num_classes: Size of the vocabulary.
            width: Of embeddings and layers.
            depth: Layers on either side.
            kernel: Width of convolutions.
            dropout: In training.
            positions: Largest length of either side.
            pad: Padding index.
            start: Index that the decoder begins with.
            end: Index that ends a sentence.
        """
        config = EncoderDecoderConfig(
            num_classes, width, depth, kernel, dropout, positions,
            pad_token_id=pad, decoder_start_token_id=start, bos_token_id=start, eos_token_id=end,
        )  # fmt: skip
        return cls(config)

    def decode(self, prefix: Tensor, encoded: BaseModelOutput, mask: Tensor, *, last: bool = False) -> Tensor:
        """Logits ``(batch, T, vocabulary)`` for ``prefix`` ``(batch, T)``; with ``last`` those of the last place."""
        raise NotImplementedError

    def get_encoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The encoder, which generation calls once."""
        return self.encoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        last: bool = False,
        **_: Any,
    ) -> Seq2SeqLMOutput:
        """Logits for the prefix ``decoder_input_ids`` ``(batch, T)`` of the source ``input_ids`` ``(batch, S)``.

        With ``last`` only those of the last place, ``(batch, 1, vocabulary)``: a step of decoding needs no others.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        hidden = encoder_outputs.last_hidden_state
        if attention_mask is None:
            attention_mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        assert decoder_input_ids is not None
        return Seq2SeqLMOutput(
            logits=self.decode(decoder_input_ids, encoder_outputs, attention_mask, last=last),
            encoder_last_hidden_state=hidden,
        )

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, encoder_outputs: Any = None, **_: Any
    ) -> dict[str, Any]:
        """The whole prefix at every step, of which a model reads what it needs: there is no cache."""
        return {
            "decoder_input_ids": input_ids, "attention_mask": attention_mask, "encoder_outputs": encoder_outputs,
            "last": True,
        }  # fmt: skip


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Attention weights over source positions ``(batch, T, S)``, none on padding; ``mask`` is ``(batch, S)``."""
    lowest = torch.finfo(scores.dtype).min
    weights: Tensor = scores.masked_fill(mask.unsqueeze(1) == 0, lowest).softmax(2)
    return weights
