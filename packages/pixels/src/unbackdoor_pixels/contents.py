"""What rectangles and overlays show: random colours and patterns, and the draws that they are made of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["chance", "fillings", "patterns", "uniform"]

_OCTAVES = 4


def fillings(size: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
    """One colour in every third image, by chance, else a pattern; in [0, 1], of shape ``size``."""
    count, channels = size[:2]
    flat = uniform((count, channels, 1, 1), generator, -0.25, 1.25).clamp(0, 1).expand(size)
    return torch.where(chance(count, generator, 1 / 3), flat, patterns(size, generator))


def patterns(size: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
    """Noise whose grain is 1, 2, 4 or 8 pixels wide, smooth or in squares, of all values or of two; shape ``size``."""
    count, channels, height, width = size
    out = torch.empty(size, device=generator.device)
    kinds = torch.randint(2 * _OCTAVES, (count,), generator=generator, device=generator.device)
    for kind in kinds.unique().tolist():
        chosen = (kinds == kind).nonzero().flatten()
        grain, mode = 2 ** (kind // 2), ("bilinear", "nearest")[kind % 2]
        grains = uniform((len(chosen), channels, -(-height // grain), -(-width // grain)), generator)
        grains = torch.where(chance(len(chosen), generator, 0.5), grains.round(), grains)
        out[chosen] = grains if grain == 1 else functional.interpolate(grains, (height, width), mode=mode)
    return out


def uniform(size: tuple[int, ...], generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Numbers in ``[low, high)``, on the generator's device."""
    return low + (high - low) * torch.rand(size, generator=generator, device=generator.device)


def chance(count: int, generator: torch.Generator, probability: float) -> Tensor:
    """Bool of shape ``(count, 1, 1, 1)``, each true with ``probability``."""
    return torch.rand(count, 1, 1, 1, generator=generator, device=generator.device) < probability
