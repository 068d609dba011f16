"""MixUp of tensors that can be averaged: who is mixed with whom, how much, and the mixed inputs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unbackdoor.errors import BadOption

__all__ = ["beta", "mix_tensors", "mix_up"]


def mix_up(
    inputs: Tensor, generator: torch.Generator, *, mix: float, per_sample: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Each sample mixed with another one of the batch, Eq. (4) of NFT.

    Args:
        inputs: Shape ``(batch, ...)``, any dtype and device; where they are integers the mixture is rounded.
        generator: Draws partners and shares.
        mix: ``lambda ~ Beta(mix, mix)``, above 0.
        per_sample: One lambda for each sample; else one for the batch.

    Returns:
        ``lambda * x_i + (1 - lambda) * x_j`` of the shape and dtype of ``inputs``; the partners ``j``, int64 of shape
        ``(batch,)``; and ``lambda``, float of shape ``(batch,)``. The mixed targets of classes are then
        ``(targets, targets[partners], shares)``.

    Raises:
        BadOption: ``mix`` is not above 0.
    """
    if not mix > 0:
        raise BadOption(f"mix is {mix}; the parameter of the Beta distribution must be above 0 (0: no MixUp).")
    count, device = len(inputs), inputs.device
    partners = torch.randperm(count, generator=generator, device=generator.device).to(device)
    share = beta(mix, count if per_sample else 1, generator).expand(count).contiguous()
    share = share.to(device, inputs.dtype if inputs.is_floating_point() else torch.float32)
    return mix_tensors(inputs, partners, share), partners, share


def beta(parameter: float, count: int, generator: torch.Generator) -> Tensor:
    """``count`` draws of ``Beta(parameter, parameter)``, float64 on the CPU."""
    if parameter == 1.0:
        return torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device).cpu()
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return torch.from_numpy(np.random.default_rng(seed).beta(parameter, parameter, count))


def mix_tensors(inputs: Tensor, partners: Tensor, weights: Tensor) -> Tensor:
    """``lambda * x_i + (1 - lambda) * x_j``: the mixed input of Eq. (4) of NFT.

    Integers are mixed as floats and rounded, so their dtype stays.

    Args:
        inputs: Shape ``(batch, ...)``.
        partners: ``j`` for every ``i``, int64 of shape ``(batch,)``.
        weights: ``lambda`` for every ``i``, float of shape ``(batch,)``.
    """
    share = weights.view(-1, *[1] * (inputs.ndim - 1))
    mixed = share * inputs + (1 - share) * inputs[partners]
    return mixed if inputs.is_floating_point() else mixed.round().to(inputs.dtype)
