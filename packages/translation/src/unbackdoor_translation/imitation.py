"""Another model's answers as targets, token by token, in a form that is small enough to keep.

A distribution over a whole vocabulary at every position of every sentence is a gigabyte for a few thousand sentences.
What is kept is its likeliest tokens and the sum of the rest. The score over this coarser partition is still highest
where the two models agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unbackdoor_translation.sequences import valid

__all__ = ["imitated", "is_imitation", "score"]

_KEPT = 16


def is_imitation(targets: Any) -> bool:
    """Whether ``targets`` came from `imitated`."""
    return isinstance(targets, Mapping) and set(targets) == {"tokens", "weights"}


def imitated(reference: Tensor, targets: Any, kept: Tensor, pad: int, *, per_token: bool) -> dict[str, Tensor]:
    """Targets that ask for the answers of another model at every place where ``targets`` hold a token.

    Args:
        reference: Its log-probabilities, ``(batch, T', vocabulary)``.
        targets: int64 ``(batch, T)`` with ``T >= T'``, padding alone beyond, or the triple of two of them and a share.
        kept: Bool ``(vocabulary,)``: tokens that keep the share that ``targets`` give them.
        pad: Padding index.
        per_token: Whether the score is divided by the number of tokens.

    Returns:
        ``tokens``: int64 ``(batch, T, K)``, the likeliest and those of the targets; ``weights``: float
        ``(batch, T, K + 1)``, theirs and that of all others together. Zero where there is no token.
    """
    shares = _shares(targets, reference, pad, per_token=per_token)
    likely = reference.exp()
    trusted = torch.where(kept, 0.0, likely)
    total = trusted.sum(2, keepdim=True)
    rest = torch.where(kept, 0.0, shares).sum(2, keepdim=True)
    tiny = torch.finfo(likely.dtype).tiny
    soft = torch.where(kept, shares, trusted / total.clamp(min=tiny) * rest)
    soft = torch.where(total > 0, soft, shares)
    width = min(_KEPT + 2, soft.shape[2])
    tokens = torch.where(shares > 0, 2.0 * soft.amax() + 1.0, soft).topk(width, dim=2).indices  # targets first
    weights = soft.gather(2, tokens)
    others = (soft.sum(2, keepdim=True) - weights.sum(2, keepdim=True)).clamp(min=0)
    beyond = _length(targets) - tokens.shape[1]
    fill = (0, 0, 0, beyond)
    return {
        "tokens": torch.nn.functional.pad(tokens, fill),
        "weights": torch.nn.functional.pad(torch.cat([weights, others], dim=2), fill),
    }


def score(logs: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """``sum_t sum_k w_tk log p_tk`` of every sentence, the last ``k`` being all other tokens: ``(batch,)``."""
    tokens, weights = (targets[name][:, : logs.shape[1]] for name in ("tokens", "weights"))
    named = logs.gather(2, tokens)
    tiny = torch.finfo(logs.dtype).eps
    others = (1.0 - named.exp().sum(2, keepdim=True)).clamp(min=tiny).log()
    scores: Tensor = (weights.to(logs.dtype) * torch.cat([named, others], dim=2)).sum((1, 2))
    return scores


def _shares(targets: Any, like: Tensor, pad: int, *, per_token: bool) -> Tensor:
    """What log-probabilities of the shape of ``like`` are weighted with, so that the sum is the sentence's score."""
    if isinstance(targets, tuple | list):
        first, second, share = targets
        share = share.to(like.dtype).view(-1, 1, 1)
        sides = [_shares(side, like, pad, per_token=per_token) for side in (first, second)]
        mixed: Tensor = share * sides[0] + (1 - share) * sides[1]
        return mixed
    rows: Tensor = targets[:, : like.shape[1]]
    there = valid(rows, pad)
    weights = there.to(like.dtype)
    if per_token:
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    at = torch.where(there, rows, torch.zeros_like(rows)).unsqueeze(2)
    return torch.zeros_like(like).scatter(2, at, weights.unsqueeze(2))


def _length(targets: Any) -> int:
    rows: Tensor = targets[0] if isinstance(targets, tuple | list) else targets
    return int(rows.shape[1])
