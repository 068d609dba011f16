"""The vector by which a network decides: what its last layer is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor.errors import UnsupportedModel

__all__ = ["Representation", "representation"]


@dataclass
class Representation:
    """Filled by each forward pass of the model inside `representation`."""

    layer: nn.Module | None = None
    given: Tensor | None = None

    @property
    def vectors(self) -> Tensor:
        """Input of the last weighted layer of the latest forward pass, with its graph: float ``(batch, features)``.

        Positions between batch and features are averaged.

        Raises:
            UnsupportedModel: No layer with a weight was called.
        """
        if self.given is None or self.layer is None:
            raise UnsupportedModel(
                "the forward pass called no layer with a weight of its own, so there is no representation before it; "
                "use a model whose last layer is a module such as nn.Linear."
            )
        value = self.given
        if value.ndim <= 2:
            return value
        if isinstance(self.layer, nn.modules.conv._ConvNd):
            return value.flatten(2).mean(dim=2)
        return value.flatten(1, -2).mean(dim=1)


@contextmanager
def representation(model: nn.Module) -> Iterator[Representation]:
    """Watch ``model``: after a forward pass `Representation.vectors` is what its last weighted layer was given."""
    seen = Representation()

    def note(module: nn.Module, arguments: tuple[object, ...]) -> None:
        value = next((one for one in arguments if isinstance(one, Tensor) and one.is_floating_point()), None)
        if value is not None:
            seen.layer, seen.given = module, value

    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    layers = [
        module
        for module in model.modules()
        if isinstance(getattr(module, "weight", None), torch.Tensor) and not isinstance(module, norms)
    ]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
