"""Weights as stacks of matrices whose rows are neurons, without any handle on them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from unbackdoor.defender.reparam.layout import Layout, layouts_of

__all__ = ["Matrix", "matrices"]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight whose rows are neurons."""

    name: str
    weight: nn.Parameter
    layout: Layout


def matrices(model: nn.Module, without: Tensor | None = None) -> list[Matrix]:
    """Every trainable weight with neurons, each once, but for ``without`` (the classifier's)."""
    found: dict[int, Matrix] = {}
    for prefix, module in model.named_modules():
        for layout in layouts_of(module):
            weight = module.get_parameter(layout.name)
            if weight.requires_grad and weight is not without:
                found.setdefault(id(weight), Matrix(f"{prefix}.{layout.name}".lstrip("."), weight, layout))
    return list(found.values())
