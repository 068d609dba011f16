"""Targets of sequences in any of their forms, and what outputs say of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["hard_targets", "log_softmax"]


def hard_targets(targets: Any) -> Tensor:
    """Token indices ``(batch, length)`` of targets in any of their forms: the likelier of two, -100 for padding."""
    if isinstance(targets, tuple | list):
        first, second, share = targets
        return torch.where((share >= 0.5).unsqueeze(1), first, second)
    if not targets.is_floating_point():
        rows: Tensor = targets
        return rows
    likeliest: Tensor = targets.argmax(2).masked_fill(targets.sum(2) == 0, -100)
    return likeliest


def log_softmax(logits: Tensor) -> Tensor:
    """Of logits ``(batch, length, tokens)``; half precision is raised to float32."""
    half = logits.dtype in (torch.float16, torch.bfloat16)
    return (logits.float() if half else logits).log_softmax(dim=2)
