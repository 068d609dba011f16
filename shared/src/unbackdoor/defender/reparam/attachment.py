"""How a handle takes the place of a layer's weights: for the layer's own forward, and for whoever else reads them.

While a handle is attached, every reader of a parameter sees the effective weight: the layer's forward by an engine,
other modules that compute with ``layer.weight`` (window attention, tied decoders) by the attribute itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from unbackdoor.defender.reparam.layout import Layout

if TYPE_CHECKING:
    from unbackdoor.defender.reparam.site import Reparametrisation

__all__ = ["KEY", "Attachment", "Inside", "Seen", "Site", "SubstitutedForward", "mixed", "substituted"]

KEY = "_unbackdoor"


@dataclass(eq=False)
class Site:
    """One weight tensor with neurons.

    Attributes:
        name: Qualified name of the parameter.
        weight: The parameter itself.
        layout: How it reads as matrices.
        owners: Layers whose ``forward`` uses it, each with the tensor's name inside; several where tied.
        depth: Position of its layer in the order of execution, 1 for the first.
    """

    name: str
    weight: nn.Parameter
    layout: Layout
    owners: list[tuple[nn.Module, str]]
    depth: int = 0

    @property
    def neurons(self) -> int:
        """Number of neurons."""
        return self.layout.neurons(self.weight)


@dataclass(eq=False)
class Inside:
    """How many calls of a layer's own forward are going on; its engine has put in what that one reads."""

    calls: int = 0

    def __enter__(self) -> None:
        """One more."""
        self.calls += 1

    def __exit__(self, *error: object) -> None:
        """One less."""
        self.calls -= 1


@dataclass(eq=False)
class Attachment:
    """What a swapped layer looks up: its sites by local tensor name, and the handle that owns the values."""

    handle: Reparametrisation
    sites: dict[str, Site] = field(default_factory=dict)
    inside: Inside = field(default_factory=Inside)

    @property
    def only(self) -> Site:
        """The one site of a layer that has one."""
        return next(iter(self.sites.values()))


class Seen:
    """A layer whose effective weight is what whoever reads the attribute gets, but for the layer's own forward."""

    def __getattr__(self, name: str) -> Any:
        attachment: Attachment | None = self.__dict__.get(KEY)
        if attachment is not None and not attachment.inside.calls and name in attachment.sites:
            site = attachment.sites[name]
            return attachment.handle.effective(site, attachment.handle.value(site))
        return super().__getattr__(name)  # type: ignore[misc]


class SubstitutedForward(Seen):
    """The dense engine: the layer's own forward over effective weights. Right for every layer, costs their gradient."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer's own forward."""
        attachment: Attachment = self.__dict__[KEY]
        handle = attachment.handle
        weights = {name: handle.effective(site, handle.value(site)) for name, site in attachment.sites.items()}
        with attachment.inside, substituted(self, weights):  # type: ignore[arg-type]
            return super().forward(*args, **kwargs)  # type: ignore[misc]


@contextmanager
def substituted(layer: nn.Module, weights: Mapping[str, Tensor | None]) -> Iterator[None]:
    """Other tensors in place of the layer's parameters inside; names may be dotted."""
    saved: list[tuple[nn.Module, str, Any]] = []
    for name, tensor in weights.items():
        path, _, local = name.rpartition(".")
        owner = layer.get_submodule(path)
        saved.append((owner, local, owner._parameters[local]))
        owner._parameters[local] = tensor  # type: ignore[assignment]
    flat = vars(layer).get("_flat_weights")
    if flat is not None:
        vars(layer)["_flat_weights"] = [getattr(layer, name) for name in layer._flat_weights_names]  # type: ignore[union-attr]
    try:
        yield
    finally:
        for owner, local, tensor in saved:
            owner._parameters[local] = tensor
        if flat is not None:
            vars(layer)["_flat_weights"] = flat


_MIXED: dict[tuple[type, type], type[nn.Module]] = {}
_mixing = threading.Lock()


def mixed(mixin: type, cls: type[nn.Module]) -> type[nn.Module]:
    """The class ``cls`` with the methods of ``mixin`` before its own, under its own name; always the same one."""
    key = (mixin, cls)
    with _mixing:
        if key not in _MIXED:
            names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
            _MIXED[key] = type(cls.__name__, (mixin, cls), names)
        return _MIXED[key]
