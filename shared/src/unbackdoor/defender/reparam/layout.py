"""Which tensors of a layer hold its neurons, and how each reads as a stack of matrices.

One matrix a group: a row is one neuron (filter), a column one input of it. Grouped convolutions have a
matrix for each group, recurrent layers one for each gate, attention's joint projection one each for
query, key and value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["LAYERS", "SCALES", "Layout", "layouts_of"]


@dataclass(frozen=True)
class Layout:
    """How the tensor ``name`` of a layer becomes matrices ``(groups, rows, columns)`` and back.

    Attributes:
        name: Tensor name inside the layer, dotted where it belongs to a child (``out_proj.weight``).
        groups: Number of matrices.
        transposed: Whether output channels are in dimension 1, as in transposed convolutions.
    """

    name: str
    groups: int = 1
    transposed: bool = False

    def neurons(self, weight: Tensor) -> int:
        """Number of neurons: output channels, gate rows."""
        return weight.shape[1] * self.groups if self.transposed else weight.shape[0]

    def repeat(self, values: Tensor, weight: Tensor) -> Tensor:
        """One value for each neuron, where ``values`` may hold one for each row of a matrix, the same in every group.

        In a recurrent layer a hidden unit has one row in the matrix of each gate.
        """
        return values.repeat(self.groups) if len(values) < self.neurons(weight) else values

    def to_matrix(self, weight: Tensor) -> Tensor:
        """``(groups, neurons / groups, columns)``; a row holds one neuron's weight vector."""
        if not self.transposed:
            return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        split = weight.reshape(self.groups, weight.shape[0] // self.groups, *weight.shape[1:])
        return split.transpose(1, 2).flatten(2)

    def from_matrix(self, matrix: Tensor, weight: Tensor) -> Tensor:
        """The inverse of `to_matrix`, for any number of rows; ``weight`` gives the kernel's shape."""
        groups, rows, _ = matrix.shape
        if not self.transposed:
            return matrix.reshape(groups * rows, *weight.shape[1:])
        split = matrix.reshape(groups, rows, weight.shape[0] // groups, *weight.shape[2:])
        return split.transpose(1, 2).reshape(weight.shape[0], rows, *weight.shape[2:])

    def scale_rows(self, weight: Tensor, scale: Tensor) -> Tensor:
        """``diag(scale) Theta``: every neuron's weight vector times its scalar, Eq. (8) of NFT."""
        if not self.transposed:
            return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        matrix = self.to_matrix(weight) * scale.reshape(self.groups, -1, 1)
        return self.from_matrix(matrix, weight)


def _convolution(layer: nn.Module) -> list[Layout]:
    return [Layout("weight", groups=int(layer.groups), transposed=bool(layer.transposed))]  # type: ignore[arg-type]


def _linear(layer: nn.Module) -> list[Layout]:
    return [Layout("weight")]


def _recurrent(layer: nn.Module) -> list[Layout]:
    gates = {"LSTM": 4, "GRU": 3}.get(str(layer.mode), 1)
    names = [name for name, _ in layer.named_parameters(recurse=False) if name.startswith("weight_")]
    return [Layout(name, groups=1 if name.startswith("weight_hr") else gates) for name in names]


def _attention(layer: nn.Module) -> list[Layout]:
    joint = getattr(layer, "in_proj_weight", None) is not None
    names = [Layout("in_proj_weight", groups=3)] if joint else []
    names += [] if joint else [Layout(f"{part}_proj_weight") for part in "qkv"]
    return [*names, Layout("out_proj.weight")]


def _table(layer: nn.Module) -> list[Layout]:
    """One neuron a row; not where PyTorch itself writes into the table or gives it sparse gradients."""
    plain = getattr(layer, "max_norm", None) is None and not getattr(layer, "sparse", False)
    return [Layout("weight")] if plain else []


def _scale(layer: nn.Module) -> list[Layout]:
    return [] if getattr(layer, "weight", None) is None else [Layout("weight")]


SCALES = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
"""Layers that normalise each sample by itself and then scale each channel."""

LAYERS: dict[type[nn.Module], Callable[[nn.Module], list[Layout]]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ConvTranspose1d: _convolution,
    nn.ConvTranspose2d: _convolution,
    nn.ConvTranspose3d: _convolution,
    nn.RNN: _recurrent,
    nn.LSTM: _recurrent,
    nn.GRU: _recurrent,
    nn.MultiheadAttention: _attention,
    nn.Embedding: _table,
    **dict.fromkeys(SCALES, _scale),
}
"""Layers with neurons. A task package may add its own types; subclasses inherit the rule."""


def layouts_of(layer: nn.Module) -> list[Layout]:
    """The weight tensors of ``layer`` that hold neurons; empty for layers that have none."""
    for cls in type(layer).__mro__:
        if cls in LAYERS:
            return LAYERS[cls](layer)
    return []
