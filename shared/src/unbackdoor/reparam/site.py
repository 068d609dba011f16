"""What all handles on a model's weights share: sites, order of execution, attaching and folding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from unbackdoor.errors import NothingTrainable, UnreachedSite
from unbackdoor.reparam.layout import SCALES, Layout, layouts_of
from unbackdoor.tree import leaves

__all__ = ["Reparametrisation", "Site", "substituted"]

_KEY = "_unbackdoor"
Probe = Callable[[], Any]
"""Runs the model once on a few samples and returns its outputs."""


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
class _Attachment:
    """What a swapped layer looks up: its sites by local tensor name, and the handle that owns the values."""

    handle: Reparametrisation
    sites: dict[str, Site] = field(default_factory=dict)

    @property
    def only(self) -> Site:
        return next(iter(self.sites.values()))


class Reparametrisation(ABC):
    """A low-dimensional handle on a model's weights that folds back into them.

    As a context manager it attaches on entry and freezes all parameters; leaving without `fold_`
    restores the model bit for bit. Layers change class while attached (an exact-type swap), so keys,
    ``isinstance`` and hooks survive, and values live outside the parameter registry.
    """

    swaps_layers: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        *,
        skip: Sequence[str] = (),
        embeddings: bool = False,
        scales: bool = False,
    ) -> None:
        """Find the sites in the order of execution.

        Args:
            model: In eval mode.
            probe: Runs it once.
            skip: Shell patterns of qualified parameter names to leave alone, such as ``"features.*.attn.*"``.
            embeddings: Whether embedding tables are sites too.
            scales: Whether the scales of layers that normalise each sample by itself are sites too.

        Raises:
            UnreachedSite: A layer's weight is used without its ``forward`` being called.
            NothingTrainable: No site is left.
        """
        self.model = model
        self.left_out = (*(() if embeddings else (nn.Embedding,)), *(() if scales else SCALES))
        self.notices: list[str] = []
        self._frozen: list[nn.Parameter] = []
        self._classes: list[tuple[nn.Module, type[nn.Module]]] = []
        self._fastpath = True
        self.sites = self._find(probe, lambda name: any(fnmatchcase(name, pattern) for pattern in skip))
        self._values: dict[str, Tensor] = {}

    @abstractmethod
    def effective(self, site: Site, value: Tensor) -> Tensor:
        """The weight that ``value`` stands for, in the shape of ``site.weight``."""

    @abstractmethod
    def fold_(self) -> None:
        """Write the effective weights into the model's own parameters, in place."""

    def project_(self) -> None:  # noqa: B027 - most handles have no constraint
        """Bring the values back into their allowed range, in place."""

    def engine(self, site: Site, layer: nn.Module) -> type:
        """The forward that a layer with this one site gets; by default the weight is substituted."""
        return SubstitutedForward

    def parameters(self) -> dict[str, Tensor]:
        """The tunable values by site name: leaf tensors, never registered in the model."""
        return dict(self._values)

    def value(self, site: Site) -> Tensor:
        """The current value at ``site``."""
        return self._values[site.name]

    @contextmanager
    def substituted(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Use other ``values`` inside, for per-sample gradients by ``torch.func``."""
        own = dict(self._values)
        self._values.update(values)
        try:
            yield
        finally:
            self._values.update(own)

    def __enter__(self) -> Self:
        """Attach to the model and freeze its own parameters."""
        self._fastpath = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # it reads weights behind our back
        self._frozen = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        attachments: dict[nn.Module, _Attachment] = {}
        for site in self.sites.values():
            for layer, local in site.owners:
                attachments.setdefault(layer, _Attachment(self)).sites[local] = site
        for layer, attachment in attachments.items():
            single = len(attachment.sites) == 1
            mixin = self.engine(attachment.only, layer) if single else SubstitutedForward
            self._swap(layer, mixin)
            layer.__dict__[_KEY] = attachment
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach; parameters are trainable again where they were."""
        for layer, cls in self._classes:
            layer.__class__ = cls
            layer.__dict__.pop(_KEY, None)
        self._classes.clear()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        torch.backends.mha.set_fastpath_enabled(self._fastpath)

    def _swap(self, layer: nn.Module, mixin: type) -> None:
        cls = type(layer)
        self._classes.append((layer, cls))
        layer.__class__ = _mixed(mixin, cls)

    def _find(self, probe: Probe, skip: Callable[[str], bool]) -> dict[str, Site]:
        candidates, users = self._candidates(), _users(self.model)
        reached = _execution_order(self.model, [layer for _, layer, _ in candidates], probe)
        sites: dict[int, Site] = {}
        unreached: dict[str, nn.Parameter] = {}
        silent: list[tuple[nn.Module, str]] = []  # layers that are never called; others may share their weight
        frozen, tied = [], []
        for prefix, layer, layouts in candidates:
            for layout in layouts:
                name = f"{prefix}.{layout.name}" if prefix else layout.name
                weight = layer.get_parameter(layout.name)
                if skip(name):
                    continue
                if not weight.requires_grad:
                    frozen.append(name)
                elif layer not in reached:
                    if not isinstance(layer, SCALES):  # reading a scale elsewhere only means that it gets no mask
                        unreached[name] = weight
                    silent.append((layer, layout.name))
                elif id(weight) in sites:
                    sites[id(weight)].owners.append((layer, layout.name))
                    sites[id(weight)].depth = min(sites[id(weight)].depth, reached[layer])
                else:
                    sites[id(weight)] = Site(name, weight, layout, [(layer, layout.name)], reached[layer])
        _join(sites, silent)
        unreached = {name: weight for name, weight in unreached.items() if id(weight) not in sites}
        for key, site in list(sites.items()):
            if len(site.owners) != len(users[key]):
                tied.append(site.name)
                del sites[key]
        self._check_unreached(unreached, probe)
        self._tell(frozen, "requires_grad=False")
        self._tell(tied, "tied to a weight that is no site, such as an embedding")
        self._tell(list(unreached), "never reached in a forward pass in eval mode")
        covered = {id(site.weight) for site in sites.values()} | {id(w) for w in unreached.values()}
        other = [
            n
            for n, p in self.model.named_parameters()
            if p.ndim >= 2 and p.requires_grad and id(p) not in covered and n not in tied and not skip(n)
        ]
        self._tell(other, "in layers of another type (embeddings, the user's own parameters)")
        if not sites:
            raise NothingTrainable(
                f"{type(self).__name__} finds no weight to tune in {type(self.model).__name__}: it needs linear, "
                "convolutional, recurrent or attention layers with requires_grad=True that a forward pass reaches. "
                + " ".join(self.notices)
            )
        ordered = sorted(sites.values(), key=lambda site: site.depth)
        rank = {depth: i + 1 for i, depth in enumerate(sorted({site.depth for site in ordered}))}
        for site in ordered:
            site.depth = rank[site.depth]
        return {site.name: site for site in ordered}

    def _candidates(self) -> list[tuple[str, nn.Module, list[Layout]]]:
        """Layers with neurons: (qualified name, layer, layouts); children of a layer that has some are its own."""
        found: list[tuple[str, nn.Module, list[Layout]]] = []
        inside: set[nn.Module] = set()
        for name, module in self.model.named_modules():
            layouts = [] if isinstance(module, self.left_out) else layouts_of(module)
            if layouts and module not in inside:
                inside.update(child for child in module.modules() if child is not module)
                found.append((name, module, layouts))
        return found

    def _check_unreached(self, unreached: Mapping[str, nn.Parameter], probe: Probe) -> None:
        if not unreached:
            return
        with torch.enable_grad(), _without_fastpath():
            total = sum(leaf.sum() for leaf in leaves(probe()) if leaf.is_floating_point())
        if not isinstance(total, Tensor) or not total.requires_grad:
            return
        gradients = torch.autograd.grad(total, list(unreached.values()), allow_unused=True)
        hidden = [name for name, g in zip(unreached, gradients, strict=True) if g is not None]
        if hidden:
            raise UnreachedSite(
                f"these weights change the output although their layers' forward is never called: {', '.join(hidden)}. "
                "Call the layer instead of reading its weight, or leave it alone: skip takes patterns of names."
            )

    def _tell(self, names: list[str], why: str) -> None:
        if names:
            rest = f" and {len(names) - 6} more" if len(names) > 6 else ""
            self.notices.append(f"left as they are, {why}: {', '.join(names[:6])}{rest}.")


def drop_head(handle: Reparametrisation) -> None:
    """Take the sites of the last layer in the order of execution off ``handle``, if there are others, and tell."""
    last = max(site.depth for site in handle.sites.values())
    names = [name for name, site in handle.sites.items() if site.depth == last]
    if last > 1:
        for name in names:
            del handle.sites[name]
        handle._tell(names, "the last layer, whose neurons are the answers")


class SubstitutedForward:
    """The dense engine: the layer's own forward over effective weights. Right for every layer, costs their gradient."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer's own forward."""
        attachment: _Attachment = self.__dict__[_KEY]
        handle = attachment.handle
        weights = {name: handle.effective(site, handle.value(site)) for name, site in attachment.sites.items()}
        with substituted(self, weights):  # type: ignore[arg-type]
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


def _mixed(mixin: type, cls: type[nn.Module]) -> type[nn.Module]:
    key = (mixin, cls)
    if key not in _MIXED:
        _MIXED[key] = type(cls.__name__, (mixin, cls), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})
    return _MIXED[key]


def _users(model: nn.Module) -> dict[int, list[str]]:
    """Every registered name of each parameter, by identity: more than one where weights are tied."""
    users: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for local, parameter in module._parameters.items():
            if parameter is not None:
                users.setdefault(id(parameter), []).append(f"{prefix}.{local}")
    return users


@contextmanager
def _without_fastpath() -> Iterator[None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _join(sites: Mapping[int, Site], silent: list[tuple[nn.Module, str]]) -> None:
    """Make layers that are never called owners of the sites whose weight they share."""
    for layer, local in silent:
        weight = layer.get_parameter(local)
        if id(weight) in sites:
            sites[id(weight)].owners.append((layer, local))


def _execution_order(model: nn.Module, layers: list[nn.Module], probe: Probe) -> dict[nn.Module, int]:
    """Position of each layer's first call in one run of the probe."""
    order: dict[nn.Module, int] = {}

    def note(layer: nn.Module, args: Any) -> None:
        order.setdefault(layer, len(order) + 1)

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with torch.no_grad(), _without_fastpath():
            probe()
    finally:
        for hook in hooks:
            hook.remove()
    return order
