"""What all handles on a model's weights share: sites, order of execution, attaching and folding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from unbackdoor.defender.reparam.attachment import (
    KEY,
    Attachment,
    Seen,
    Site,
    SubstitutedForward,
    mixed,
    substituted,
)
from unbackdoor.defender.reparam.finding import Search, candidates_of, listed
from unbackdoor.defender.reparam.layout import SCALES, Layout
from unbackdoor.defender.reparam.tracing import Probe, gradients_of, outputs_of, owners_of
from unbackdoor.errors import UnreachedSite
from unbackdoor.network.backend import without_fastpath

__all__ = ["Probe", "Reparametrisation", "Site", "SubstitutedForward", "drop_head", "substituted"]

_UNSEEN, _UNSEEN_DOUBLE = 0.02, 1e-8
"""Share of a value's gradient, or of a change of the answers, that may be missing in the attached model: rounding, in
the coarsest arithmetic and in float64."""

_ROUNDING = 1e-5
"""The same as a share of the largest gradient that the value could have; all that is left where terms cancel."""

_STEP, _NOISE = 0.3, 10.0
"""Length of the step, in lengths of a weight, by which it is tried, and how much larger than the rounding of the
attached model a difference must be to count."""

_REMEDY = "Call the layer or read its attribute, or leave it alone: skip takes patterns of names."


class Reparametrisation(ABC):
    """A low-dimensional handle on a model's weights that folds back into them.

    As a context manager it attaches on entry and freezes all parameters; leaving without `fold_`
    restores the model bit for bit. Layers change class while attached (an exact-type swap), so keys,
    ``isinstance`` and hooks survive, and values live outside the parameter registry. Whoever reads a layer's
    weight meanwhile, its own forward or another module, gets the effective one.
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
            UnreachedSite: A weight changes the output past its layer's forward and its attribute.
            NothingTrainable: No site is left.
            UnsupportedModel: No gradient reaches any of them.
        """
        self.model = model
        self.left_out = (*(() if embeddings else (nn.Embedding,)), *(() if scales else SCALES))
        self._frozen: list[nn.Parameter] = []
        self._classes: list[tuple[nn.Module, type[nn.Module]]] = []
        self._kernels = without_fastpath()
        search = Search(model, self._candidates(), skip)
        self.sites = search.sites(type(self).__name__, probe)
        self._slopes = search.slopes  # of `response` by each site's weight; let go once they were compared
        self.notices: list[str] = search.notices
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
        self._kernels.__enter__()
        self._frozen = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        held: dict[nn.Module, dict[str, Site]] = {}
        for site in self.sites.values():
            for layer, local in site.owners:
                held.setdefault(layer, {})[local] = site
        for layer, sites in held.items():
            self._attach(layer, sites)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach; parameters are trainable again where they were."""
        for layer, cls in reversed(self._classes):
            layer.__class__ = cls
            layer.__dict__.pop(KEY, None)
        self._classes.clear()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._kernels.__exit__()

    def _attach(self, layer: nn.Module, sites: dict[str, Site]) -> None:
        """Give ``layer`` its engine, and children that hold some of its tensors what their readers need."""
        attachment = Attachment(self, sites)
        engine = self.engine(attachment.only, layer) if len(sites) == 1 else SubstitutedForward
        for owner, names in owners_of(layer, list(sites)).items():
            own = {local: sites[name] for local, name in names.items()}
            self._swap(owner, engine if owner is layer else Seen)
            owner.__dict__[KEY] = attachment if owner is layer else Attachment(self, own, attachment.inside)

    def _swap(self, layer: nn.Module, mixin: type) -> None:
        cls = type(layer)
        self._classes.append((layer, cls))
        layer.__class__ = mixed(mixin, cls)

    def _candidates(self) -> list[tuple[str, nn.Module, list[Layout]]]:
        """Layers with neurons: (qualified name, layer, layouts)."""
        return candidates_of(self.model, self.left_out)

    @torch.no_grad()
    def _check_seen(self, probe: Probe) -> None:
        """Make sure that whoever reads a weight sees what is tuned.

        A reader that goes past the layer's forward and past its attribute would go on with the given weight, and the
        folded model would answer otherwise than the one that was tuned. Where such a reader has a gradient, that of the
        value in the attached model lacks its part. Where it has none, the answers of the attached and of the folded
        model tell, with all values moved at once.

        Raises:
            UnreachedSite: Names the weights that have such a reader.
        """
        values = list(self._values.values())
        try:
            with self:
                found = gradients_of(self.model, values, probe)
        except (AttributeError, TypeError) as error:
            raise UnreachedSite(
                f"the model does not run with other tensors in place of its weights ({type(error).__name__}: {error}): "
                f"it asks for a parameter itself. {_REMEDY}"
            ) from error
        unseen = []
        for (name, site), value, slope in zip(self.sites.items(), values, found, strict=True):
            with torch.enable_grad():
                (due,) = torch.autograd.grad((self.effective(site, value) * self._slopes[name]).sum(), value)
            missing = due if slope is None else due - slope
            largest = float(site.weight.norm()) * float(self._slopes[name].norm())
            if float(missing.norm()) > _UNSEEN * float(due.norm()) + _ROUNDING * largest and self._departs(probe, site):
                unseen.append(name)
        self._slopes = {}
        if not unseen and self._departs(probe, *self.sites.values()):
            unseen = [name for name, site in self.sites.items() if self._departs(probe, site)] or list(self.sites)
        if unseen:
            raise UnreachedSite(
                f"these weights are read past their layers, so that the model would not see what is tuned: "
                f"{', '.join(unseen)}. {_REMEDY}"
            )

    def _departs(self, probe: Probe, *sites: Site) -> bool:
        """Whether the attached model answers otherwise than one with effective weights of ``sites`` written in.

        Gradients alone do not show it: those of lookups leave out the padding row, of a network whose activations run
        away little is left but rounding, and a reader under ``torch.no_grad`` has none.
        """
        moved = {site.name: self._moved(site) for site in sites}
        given = {site.name: site.weight.detach().clone() for site in sites}
        given_out = outputs_of(self.model, probe)
        with self:
            rounding = float((outputs_of(self.model, probe) - given_out).norm())
            with self.substituted(moved):
                attached = outputs_of(self.model, probe)
        try:
            for site in sites:
                site.weight.copy_(self.effective(site, moved[site.name]))
            folded = outputs_of(self.model, probe)
        finally:
            for site in sites:
                site.weight.copy_(given[site.name])
        double = all(site.weight.dtype == torch.float64 for site in sites)
        change, off = float((folded - given_out).norm()), float((folded - attached).norm())
        if double:
            return off > _UNSEEN_DOUBLE * (change + float(given_out.norm())) + _NOISE * rounding
        return off > _UNSEEN * change + _NOISE * rounding + _ROUNDING * float(given_out.norm())

    def _moved(self, site: Site) -> Tensor:
        """A value that stands for a weight `_STEP` of its length away."""
        value = self.value(site)
        draw = 2 * torch.rand(value.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
        draw = draw.to(value)
        step = self.effective(site, value + draw) - self.effective(site, value)
        length = step.norm().clamp(min=torch.finfo(step.dtype).tiny)
        moved: Tensor = value + draw * (_STEP * site.weight.norm() / length)
        return moved

    def _leave(self, names: Sequence[str], why: str) -> None:
        """Take sites off and tell."""
        for name in names:
            del self.sites[name]
        self.notices += listed(names, why)


def drop_head(handle: Reparametrisation) -> None:
    """Take the sites of the last layer in the order of execution off ``handle``, if there are others, and tell."""
    last = max(site.depth for site in handle.sites.values())
    names = [name for name, site in handle.sites.items() if site.depth == last]
    if last > 1:
        handle._leave(names, "the last layer, whose neurons are the answers")
