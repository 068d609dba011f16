"""What a network computes half-way: outputs of its modules at chosen depths, found by one run and named by module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.errors import BadOption, UnsupportedModel
from unbackdoor.tree import leaves

__all__ = ["Depth", "attention", "classifier", "depths", "last_layer", "recorded"]

_CHANNELS_FIRST = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d),
)


@dataclass(frozen=True)
class Depth:
    """A place in a network.

    Attributes:
        module: Qualified name of the module whose output (the last one, where it is called several times) is meant.
        channels: Dimension of the channels: 1 for feature maps, -1 for sequences and plain vectors.
        shape: Of the output for one sample when the place was found.
    """

    module: str
    channels: int
    shape: tuple[int, ...]


def depths(model: nn.Module, probe: Callable[[], Any], count: int) -> list[Depth]:
    """At most ``count`` places in the order of execution, the ends of a network's stages where it has such.

    A stage is a run of outputs with one resolution (number of positions); its end is its last output. Of more stages
    than asked for the last ones are taken, as in the public code of NAD; a network with fewer is cut evenly. Networks
    without positions (perceptrons) have their hidden vectors instead. The network's own output is never a place.

    Args:
        model: In eval mode.
        probe: Runs it once on at least two samples.
        count: Number of places, at least 1.

    Raises:
        BadOption: ``count`` is below 1.
        UnsupportedModel: No module inside gives a float tensor with the batch in dimension 0.
    """
    if count < 1:
        raise BadOption(f"points is {count}; attention must be compared at one depth at least.")
    found = _outputs(model, probe)
    maps = [depth for depth in found if len(depth.shape) >= 2 and _positions(depth) > 1]
    chain = maps or [depth for depth in found if len(depth.shape) == 1]
    if not chain:
        raise UnsupportedModel(
            f"no module inside {type(model).__name__} before its last layer gives a float tensor with the batch in "
            "dimension 0, so there are no features to compare; use another method."
        )
    ends = [
        depth
        for depth, after in zip(chain, [*chain[1:], None], strict=True)
        if after is None or _positions(after) != _positions(depth)
    ]
    last: dict[object, Depth] = {_positions(depth): depth for depth in ends}  # a resolution may come back (U-nets)
    stages = [depth for depth in ends if last[_positions(depth)] is depth]
    if len(stages) >= count:
        return stages[-count:]
    picks = sorted({round((i + 1) * len(chain) / count) - 1 for i in range(count)})
    return [chain[max(0, i)] for i in picks]


def attention(features: Tensor, channels: int, power: float = 2.0) -> Tensor:
    r"""``A(F) = sum_c |F_c|^p``, scaled to ``||A||_2 = 1`` for each sample: Eq. (1) and the normalisation of NAD.

    Args:
        features: ``(batch, channels, ...)`` or ``(batch, ..., channels)``; a plain vector ``(batch, channels)`` keeps
            its entries, as its sum would be the constant 1.
        channels: Which dimension.
        power: ``p``.

    Returns:
        Shape ``(batch, positions)``.
    """
    energy = features.abs().pow(power)
    flat = (energy if features.ndim == 2 else energy.sum(channels)).flatten(1)
    scaled: Tensor = flat / flat.norm(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny ** 0.5)
    return scaled


def classifier(model: nn.Module, probe: Callable[[], Any]) -> tuple[str, nn.Module]:
    """The `last_layer`, if it can be made anew.

    Args:
        model: In eval mode.
        probe: Runs it once.

    Raises:
        UnsupportedModel: There is none, it is frozen, or its weight is tied to that of another layer.
    """
    name, layer = last_layer(model, probe)
    kind = type(model).__name__
    weight = _matrix(layer)
    assert weight is not None
    names = [n for n, p in model.named_parameters(remove_duplicate=False) if p is weight]
    if len(names) > 1:
        raise UnsupportedModel(
            f"the weight of {kind}'s last layer is tied ({', '.join(names)}), so it cannot be made anew without "
            "destroying the other; untie them first, or use a method that has no need of it, such as nft or ft-sam."
        )
    if not weight.requires_grad:
        raise UnsupportedModel(f"{name}.weight, {kind}'s last layer, has requires_grad=False; set it to True.")
    return name, layer


def last_layer(model: nn.Module, probe: Callable[[], Any]) -> tuple[str, nn.Module]:
    """Name and layer of the last weight matrix in the order of execution: what turns features into answers.

    Args:
        model: In eval mode.
        probe: Runs it once.

    Raises:
        UnsupportedModel: No layer with a weight matrix is reached.
    """
    last: list[tuple[str, nn.Module]] = []

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            last[:] = [(name, module)]

        return hook

    hooks = [
        module.register_forward_hook(hook_of(name))
        for name, module in model.named_modules()
        if _matrix(module) is not None and not isinstance(module, nn.Embedding)
    ]
    try:
        with torch.no_grad():
            probe()
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise UnsupportedModel(f"{type(model).__name__} has no layer with a weight matrix that a forward pass reaches.")
    return last[0]


def _matrix(module: nn.Module) -> nn.Parameter | None:
    weight = module._parameters.get("weight")
    return weight if weight is not None and weight.ndim >= 2 else None


@contextmanager
def recorded(model: nn.Module, places: Sequence[Depth]) -> Iterator[dict[str, Tensor]]:
    """Inside, forward passes leave the outputs of ``places`` in the dictionary that is yielded, by module name."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            kept[name] = leaves(output)[0]

        return hook

    hooks = [model.get_submodule(place.module).register_forward_hook(keep(place.module)) for place in places]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _positions(depth: Depth) -> int:
    if len(depth.shape) == 1:
        return depth.shape[0]
    sizes = list(depth.shape)
    del sizes[depth.channels - 1 if depth.channels > 0 else depth.channels]
    product = 1
    for size in sizes:
        product *= size
    return product


def _outputs(model: nn.Module, probe: Callable[[], Any]) -> list[Depth]:
    """Every module with a feature-like output, in the order in which the modules end."""
    first_dims: list[int] = []
    met: dict[str, Depth] = {}
    state = {"channels": -1}
    shared = {id(m) for m in model.modules() if sum(m is other for _, other in model.named_modules()) > 1}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(module, _CHANNELS_FIRST):
                state["channels"] = 1
            elif any(True for _ in module.parameters(recurse=False)):
                state["channels"] = -1
            tensors = leaves(output)
            if id(module) in shared or not tensors or not tensors[0].is_floating_point() or tensors[0].ndim < 2:
                return
            given = leaves(args)
            if not any(True for _ in module.parameters()) and (not given or given[0].shape != tensors[0].shape):
                return  # reshapes, transposes, pools: what was a channel may be one no longer
            first_dims.append(tensors[0].shape[0])
            met.pop(name, None)
            channels = state["channels"] if tensors[0].ndim > 2 else -1
            met[name] = Depth(name, channels, tuple(tensors[0].shape[1:]))

        return hook

    hooks = [m.register_forward_hook(hook_of(n)) for n, m in model.named_modules() if n]
    try:
        with torch.no_grad():
            outputs = leaves(probe())
    finally:
        for hook in hooks:
            hook.remove()
    final = tuple(outputs[0].shape[1:]) if outputs else ()
    found = list(met.values())
    hidden = list(found)
    while hidden and hidden[-1].shape == final:  # the classifier's own output, and softmax or dropout behind it
        hidden.pop()
    if hidden:
        return hidden
    while found:  # every layer has as many units as there are classes: drop the last one with weights of its own
        last = model.get_submodule(found.pop().module)
        if any(True for _ in last.parameters(recurse=False)):
            break
    return found
