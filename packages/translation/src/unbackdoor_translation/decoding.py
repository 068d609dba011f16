"""Greedy and beam decoding: Hugging Face's where the model has it, else a plain greedy loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.errors import BadOption

__all__ = ["decode"]


def decode(
    model: nn.Module,
    sources: Tensor,
    mask: Tensor,
    step: Callable[[Tensor], Tensor],
    *,
    start: int,
    end: int,
    pad: int,
    beams: int,
    length: int,
) -> Tensor:
    """Answers of ``model``, closed by ``end`` and padded: int64 of shape ``(batch, at most length)``.

    Args:
        model: With Hugging Face's ``generate``, or any module.
        sources: Tokens ``(batch, S)``.
        mask: 1 where they hold a token.
        step: ``step(prefix) -> logits (batch, T, vocabulary)`` of a module without ``generate``.
        start: Index that the decoder begins with.
        end: Index that ends an answer.
        pad: Index of padding.
        beams: 1 for greedy decoding.
        length: Largest number of tokens.

    Raises:
        BadOption: Beams are asked of a module without ``generate``.
    """
    generate: Any = getattr(model, "generate", None)
    if callable(generate):
        found: Tensor = generate(
            input_ids=sources, attention_mask=mask, max_new_tokens=length, num_beams=beams, do_sample=False,
            decoder_start_token_id=start, eos_token_id=end, pad_token_id=pad,
        )  # fmt: skip
        return _ended(found[:, 1:], end, pad)
    if beams > 1:
        raise BadOption(f"beams is {beams}, but {type(model).__name__} has no generate method; use beams=1.")
    prefix = torch.full((len(sources), 1), start, dtype=torch.long, device=sources.device)
    done = torch.zeros(len(sources), dtype=torch.bool, device=sources.device)
    for _ in range(length):
        token = step(prefix)[:, -1].argmax(1).masked_fill(done, pad)
        prefix = torch.cat([prefix, token.unsqueeze(1)], dim=1)
        done |= token == end
        if bool(done.all()):
            break
    return _ended(prefix[:, 1:], end, pad)


def _ended(tokens: Tensor, end: int, pad: int) -> Tensor:
    """Everything after the first ``end`` becomes padding."""
    if tokens.shape[1] == 0:
        return torch.full_like(
            tokens[:, :1].expand(len(tokens), 1) if tokens.numel() else tokens.new_zeros(len(tokens), 1), pad
        )
    before = (tokens == end).cumsum(1) - (tokens == end).long()
    return tokens.masked_fill(before > 0, pad)
