"""Pytrees of tensors, batch first: what inputs, targets and outputs are made of.

Dictionaries (Hugging Face batches), tuples (several inputs) and single tensors all pass through the
same code, so that no method and no loop asks which it has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Tree", "first_dim", "leaves", "tree_map", "tree_put"]

Tree = Any
"""A tensor, or a tuple, list or dict of trees. The first dimension of every tensor is the batch."""


def leaves(tree: Tree) -> list[Tensor]:
    """All tensors of the tree, in a fixed order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def tree_map(function: Callable[[Tensor], Any], tree: Tree) -> Tree:
    """The tree with ``function`` applied to its tensors; what is no tensor stays."""
    return pytree.tree_map_only(Tensor, function, tree)


def first_dim(tree: Tree) -> int:
    """The batch size.

    Raises:
        ValueError: The tree holds no tensor, a scalar tensor, or tensors of different batch sizes.
    """
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in leaves(tree)}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(f"expected tensors of one batch size, got first dimensions {sorted(map(str, sizes))}")
    return int(next(iter(sizes)))  # type: ignore[arg-type]


def tree_put(tree: Tree, index: Tensor, values: Tree) -> Tree:
    """A copy of the tree with ``values``, a tree of the same structure, in the places ``index`` of dimension 0."""
    return pytree.tree_map(
        lambda t, new: t.index_copy(0, index, new.to(t)) if isinstance(t, Tensor) else t, tree, values
    )
