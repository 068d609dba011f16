"""What one run of a model says of its weights: which layers are called or read, in what order, and what feels them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.defender.reparam.attachment import KEY, Inside, mixed
from unbackdoor.network.backend import seeded, without_fastpath, without_fused_layers
from unbackdoor.network.gradients import slopes
from unbackdoor.tree import leaves

__all__ = ["Probe", "Trace", "gradients_of", "outputs_of", "owners_of", "response", "traced"]

Probe = Callable[[], Any]
"""Runs the model once on a few samples and returns its outputs."""


@dataclass
class Trace:
    """Who was met in one run.

    Attributes:
        order: Position of each layer when it was first called or read, 1 for the first.
        called: Layers whose own forward ran.
        read: Layers and the names of their tensors that someone else read.
    """

    order: dict[nn.Module, int] = field(default_factory=dict)
    called: set[nn.Module] = field(default_factory=set)
    read: set[tuple[nn.Module, str]] = field(default_factory=set)

    def met(self, layer: nn.Module) -> None:
        """``layer`` is called or read."""
        self.order.setdefault(layer, len(self.order) + 1)

    def reached(self, layer: nn.Module, local: str) -> bool:
        """Whether the layer was called, or its tensor read."""
        return layer in self.called or (layer, local) in self.read


@dataclass
class _Watched:
    """What a traced module looks up: ``names`` maps its own tensors' names to those within ``layer``."""

    trace: Trace
    layer: nn.Module
    names: dict[str, str]
    inside: Inside


class _Noting:
    def __getattr__(self, name: str) -> Any:
        watched: _Watched | None = self.__dict__.get(KEY)
        if watched is not None and not watched.inside.calls and name in watched.names:
            watched.trace.met(watched.layer)
            watched.trace.read.add((watched.layer, watched.names[name]))
        return super().__getattr__(name)  # type: ignore[misc]


class _NotingCalls(_Noting):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        watched: _Watched = self.__dict__[KEY]
        watched.trace.met(watched.layer)
        watched.trace.called.add(watched.layer)
        with watched.inside:
            return super().forward(*args, **kwargs)  # type: ignore[misc]


def owners_of(layer: nn.Module, names: Sequence[str]) -> dict[nn.Module, dict[str, str]]:
    """The modules that hold a layer's tensors, itself or children: their own names for the tensors, and the layer's."""
    found: dict[nn.Module, dict[str, str]] = {layer: {}}
    for name in names:
        path, _, local = name.rpartition(".")
        found.setdefault(layer.get_submodule(path), {})[local] = name
    return found


def traced(layers: Mapping[nn.Module, Sequence[str]], probe: Probe) -> Trace:
    """Run ``probe`` once and note which of ``layers`` are called, and which of their tensors others read."""
    trace = Trace()
    with torch.no_grad(), without_fastpath(), _noted(layers, trace):
        probe()
    return trace


@contextmanager
def _noted(layers: Mapping[nn.Module, Sequence[str]], trace: Trace) -> Iterator[None]:
    classes: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for layer, names in layers.items():
            inside = Inside()
            for owner, local in owners_of(layer, names).items():
                classes.append((owner, type(owner)))
                owner.__dict__[KEY] = _Watched(trace, layer, local, inside)
                owner.__class__ = mixed(_NotingCalls if owner is layer else _Noting, type(owner))
        yield
    finally:
        for owner, cls in classes:
            owner.__class__ = cls
            owner.__dict__.pop(KEY, None)


def response(outputs: Any) -> Tensor:
    """One number that feels every entry of the outputs: a sum with fixed weights that favour none."""
    total = torch.zeros(())
    for leaf in leaves(outputs):
        if leaf.is_floating_point():
            places = torch.arange(leaf.numel(), device=leaf.device, dtype=torch.float64)
            weights = torch.cos(places * math.sqrt(2.0) + 1.0).to(leaf.dtype).view(leaf.shape)
            total = total.to(leaf.device) + (leaf * weights).sum()
    return total


@torch.no_grad()
def outputs_of(model: nn.Module, probe: Probe) -> Tensor:
    """All floats of the outputs of one run in one vector; draws are the same each time."""
    with seeded(0, next(model.parameters()).device), without_fastpath():
        return torch.cat([leaf.double().flatten() for leaf in leaves(probe()) if leaf.is_floating_point()])


def gradients_of(
    model: nn.Module, tensors: Sequence[Tensor], probe: Probe, *, needed: bool = True
) -> list[Tensor | None]:
    """The gradient of `response` by each of ``tensors`` in one run; None where a tensor plays no part.

    What a model draws from the global generator is the same each time. It is an error, where they are ``needed``, if
    none of them plays a part.

    Raises:
        UnsupportedModel: None of them plays a part.
    """
    device = next(model.parameters()).device
    fused = any(isinstance(module, nn.RNNBase) for module in model.modules()) and device.type == "cuda"
    with seeded(0, device), torch.enable_grad(), without_fastpath(), without_fused_layers() if fused else nullcontext():
        return slopes(response(probe()), tensors, needed=needed)
