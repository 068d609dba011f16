"""BatchNorm in eval mode as the affine map that it is: one pass, and nothing kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["FrozenNorm", "freeze_norms"]

_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}


class FrozenNorm:
    """``y = z * gamma / s + (beta - gamma * mean / s)`` with ``s = sqrt(var + eps)``, all constants."""

    def forward(self, z: Tensor) -> Tensor:
        """Normalise ``z`` of shape ``(batch, channels, ...)`` with the running statistics."""
        if self.training or self.running_mean is None:  # type: ignore[attr-defined]
            return super().forward(z)  # type: ignore[misc,no-any-return]
        scale = torch.rsqrt(self.running_var + self.eps)  # type: ignore[attr-defined]
        if self.weight is not None:  # type: ignore[attr-defined]
            scale = scale * self.weight  # type: ignore[attr-defined]
        shift = -self.running_mean * scale  # type: ignore[attr-defined]
        if self.bias is not None:  # type: ignore[attr-defined]
            shift = shift + self.bias  # type: ignore[attr-defined]
        shape = (1, -1, *[1] * (z.ndim - 2))
        return torch.addcmul(shift.view(shape), z, scale.view(shape))


def freeze_norms(model: nn.Module, swap: Callable[[nn.Module, type], None]) -> None:
    """Give every plain BatchNorm layer of ``model`` this forward."""
    for module in model.modules():
        if type(module) in _NORMS:
            swap(module, FrozenNorm)
