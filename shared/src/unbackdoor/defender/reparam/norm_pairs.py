"""Which BatchNorm takes a layer's output as it is: read off a forward pass, not off the order of modules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbackdoor.defender.reparam.tracing import Probe

__all__ = ["norms_after"]


@torch.no_grad()
def norms_after(model: nn.Module, layers: Iterable[nn.Module], probe: Probe) -> dict[nn.Module, _BatchNorm]:
    """The BatchNorm whose input is the very tensor that a layer gave, for each layer that has one.

    In a pre-activation network the convolution before an addition has none, although a BatchNorm is the next module:
    the sum goes into that one.

    Args:
        model: In eval mode, with hooks of its own or not.
        layers: Those asked about.
        probe: Runs the model once.

    Returns:
        Pairs of one layer and one BatchNorm with as many channels. A BatchNorm that several layers feed, or a layer
        that several BatchNorms read, has no pair.
    """
    wanted = set(layers)
    made: list[tuple[Tensor, nn.Module]] = []  # outputs are kept alive, so that no address is used twice
    links: set[tuple[nn.Module, nn.Module]] = set()

    def after(layer: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            made.append((output, layer))

    def before(norm: nn.Module, args: Any) -> None:
        links.update((layer, norm) for output, layer in made if args and output is args[0])

    hooks = [layer.register_forward_hook(after) for layer in wanted]
    hooks += [m.register_forward_pre_hook(before) for m in model.modules() if isinstance(m, _BatchNorm)]
    try:
        probe()
    finally:
        for hook in hooks:
            hook.remove()
    pairs: dict[nn.Module, _BatchNorm] = {}
    for layer, norm in links:
        alone = sum(layer is other for other, _ in links) == 1 and sum(norm is other for _, other in links) == 1
        if alone and isinstance(norm, _BatchNorm):
            pairs[layer] = norm
    return pairs
