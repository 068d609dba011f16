"""Values at points chosen by index."""

from __future__ import annotations

from torch import Tensor

__all__ = ["group", "pick"]


def pick(values: Tensor, index: Tensor) -> Tensor:
    """``out[b, c, m] = values[b, c, index[b, m]]``.

    Args:
        values: Shape ``(batch, channels, points)``.
        index: int64 of shape ``(batch, chosen)``.

    Returns:
        Shape ``(batch, channels, chosen)``.
    """
    return values.gather(2, index.unsqueeze(1).expand(-1, values.shape[1], -1))


def group(values: Tensor, index: Tensor) -> Tensor:
    """``out[b, c, m, k] = values[b, c, index[b, m, k]]``.

    Args:
        values: Shape ``(batch, channels, points)``.
        index: int64 of shape ``(batch, centres, neighbours)``.

    Returns:
        Shape ``(batch, channels, centres, neighbours)``.
    """
    chosen: Tensor = pick(values, index.flatten(1)).unflatten(2, index.shape[1:])
    return chosen
