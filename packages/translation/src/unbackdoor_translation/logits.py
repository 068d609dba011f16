"""Logits out of whatever a model returns, and their logarithms as probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["log_softmax", "pick_logits"]


def log_softmax(logits: Tensor) -> Tensor:
    """Over the vocabulary; half precision is raised to float32."""
    half = logits.dtype in (torch.float16, torch.bfloat16)
    return (logits.float() if half else logits).log_softmax(dim=2)


def pick_logits(answer: Any) -> Any:
    """The tensor of logits in a mapping, an object of Hugging Face or a tuple; anything else comes back as it is."""
    if isinstance(answer, Mapping) and "logits" in answer:
        return answer["logits"]
    if isinstance(getattr(answer, "logits", None), Tensor):
        return answer.logits
    if isinstance(answer, tuple | list) and answer:
        return answer[0]
    return answer
