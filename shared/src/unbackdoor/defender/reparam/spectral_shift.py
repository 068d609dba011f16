"""Shifts of singular values with the singular vectors frozen: the handle of fast FIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from unbackdoor.defender.reparam.attachment import KEY, Seen, Site, SubstitutedForward, substituted
from unbackdoor.defender.reparam.frozen_norm import freeze_norms
from unbackdoor.defender.reparam.neuron_mask import _PLAIN
from unbackdoor.defender.reparam.site import Reparametrisation
from unbackdoor.defender.reparam.tracing import Probe

__all__ = ["SpectralShift"]


@dataclass(frozen=True)
class _Factors:
    """``W = U diag(s) Vh`` for each group: ``(g, rows, r)``, ``(g, r)``, ``(g, r, columns)``."""

    left: Tensor
    singular: Tensor
    right: Tensor


class SpectralShift(Reparametrisation):
    r"""Shifts ``delta`` with ``W = U diag(relu(s + delta)) V^T``: Sec. 5.1 and Eq. (9) of FIP.

    With ``relative=True`` the tuned value is ``rho`` with ``delta = s * rho``: the shift in units of its own
    singular value. This makes steps, gradients and ``Tr(F)`` independent of the scale of ``W``, which a
    normalisation that follows makes arbitrary; it goes beyond the paper.

    An embedding table is no map of vectors but a list of them: a lookup takes one row, and never adds two. So with
    ``embeddings=True`` each row is a matrix of its own, whose one singular value is its length. That is beyond the
    paper too.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        *,
        relative: bool = False,
        floor: float | None = None,
        gain: float | None = None,
        skip: Sequence[str] = (),
        embeddings: bool = False,
    ) -> None:
        """Decompose every weight; values have the shape ``(groups, rank)`` of its singular values.

        Args:
            model: In eval mode.
            probe: Runs it once.
            relative: Whether values are in units of their singular value.
            floor: Smallest ``sigma / s``; the paper has none (None). Where ReLU has cut a singular value to 0, no
                gradient brings it back, so a small floor keeps all of them alive.
            gain: Largest factor by which all ``L`` layers together may grow: each ``sigma / s`` stays below
                ``gain ** (1 / L)``, so that deep networks cannot run away. The paper has no bound (None); 1 lets
                singular values only shrink.
            skip: Shell patterns of qualified parameter names to leave alone.
            embeddings: Whether the rows of embedding tables have a shift each, with whatever is tied to them.

        Raises:
            NothingTrainable: No site is left.
            UnreachedSite: See `Reparametrisation`.
        """
        super().__init__(model, probe, skip=skip, embeddings=embeddings)
        self.relative = relative
        for site in self.sites.values():
            if any(isinstance(layer, nn.Embedding) for layer, _ in site.owners):
                site.layout = replace(site.layout, groups=site.neurons)
        self.factors = {name: _decompose(site) for name, site in self.sites.items()}
        depth = max(site.depth for site in self.sites.values())
        self.floor, self.ceiling = floor, None if gain is None else gain ** (1 / depth)
        self._values = {
            name: torch.zeros_like(factors.singular, requires_grad=True) for name, factors in self.factors.items()
        }
        self._check_seen(probe)

    def _unit(self, factors: _Factors) -> Tensor:
        """The value that a shift of one singular value has: ones, or ``s`` itself."""
        return torch.ones_like(factors.singular) if self.relative else factors.singular.clone()

    def sigma(self, site: Site, value: Tensor) -> Tensor:
        """``relu(s + delta)``, shape ``(groups, rank)``."""
        singular = self.factors[site.name].singular
        return functional.relu(singular + (singular * value if self.relative else value))

    @torch.no_grad()
    def attenuate_(self, factor: float) -> None:
        """Scale every ``sigma`` by ``factor``."""
        for site in self.sites.values():
            value, unit = self.value(site), self._unit(self.factors[site.name])
            value.copy_((value + unit).clamp(min=0) * factor - unit)

    @torch.no_grad()
    def project_(self) -> None:
        """Bring ``sigma`` into ``[floor * s, ceiling * s]``."""
        for name, value in self._values.items():
            unit = self._unit(self.factors[name])
            if self.floor is not None:
                torch.maximum(value, (self.floor - 1.0) * unit, out=value)
            if self.ceiling is not None:
                torch.minimum(value, (self.ceiling - 1.0) * unit, out=value)

    def effective(self, site: Site, value: Tensor) -> Tensor:
        """``U diag(relu(s + delta)) V^T`` in the weight's shape."""
        factors = self.factors[site.name]
        matrix = (factors.left * self.sigma(site, value).unsqueeze(1)) @ factors.right
        return site.layout.from_matrix(matrix, site.weight)

    def engine(self, site: Site, layer: nn.Module) -> type:
        """Factored where it is cheaper: ``2 r (K + C_out) < 3 K C_out`` for each group, and the layer is plain."""
        if type(layer) is nn.Embedding:
            return ShiftedRows
        _, rank, columns = self.factors[site.name].right.shape
        rows = self.factors[site.name].left.shape[1]
        cheaper = 2 * rank * (columns + rows) < 3 * columns * rows
        return FactoredForward if cheaper and type(layer) in _PLAIN else SubstitutedForward

    @torch.no_grad()
    def fold_(self) -> None:
        """``W <- W + U diag(relu(s + delta) - s) V^T``, so that a zero shift leaves ``W`` bit for bit."""
        for site in self.sites.values():
            factors = self.factors[site.name]
            change = self.sigma(site, self.value(site)) - factors.singular
            matrix = (factors.left * change.unsqueeze(1)) @ factors.right
            site.weight.add_(site.layout.from_matrix(matrix, site.weight))

    def __enter__(self) -> Self:
        """Attach; BatchNorm in eval mode becomes a plain affine map."""
        super().__enter__()
        freeze_norms(self.model, self._swap)
        return self


class FactoredForward(Seen):
    """The fast engine of shifts: ``y = (U diag(sigma)) (V^T x) + b``, two layers and no gradient of ``W``.

    Only the small factor ``U diag(sigma)`` needs a gradient, so ``V^T x`` is all that is kept for it.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer with ``V^T`` as its weight, then a pointwise layer with ``U diag(sigma)``."""
        attachment = self.__dict__[KEY]
        handle, site = attachment.handle, attachment.only
        factors = handle.factors[site.name]
        right = site.layout.from_matrix(factors.right, site.weight)
        mixing = (factors.left * handle.sigma(site, handle.value(site)).unsqueeze(1)).flatten(0, 1)
        bias = self._parameters["bias"]
        with attachment.inside, substituted(self, {"weight": right, "bias": None}):  # type: ignore[arg-type]
            inner: Tensor = super().forward(*args, **kwargs)  # type: ignore[misc]
        spatial = site.weight.ndim - 2
        if spatial == 0 and site.layout.groups > 1:  # tied to a table: every row is a matrix of its own
            return inner * mixing.view(-1) if bias is None else torch.addcmul(bias, inner, mixing.view(-1))
        if spatial == 0:
            return functional.linear(inner, mixing, bias)
        pointwise = (functional.conv1d, functional.conv2d, functional.conv3d)[spatial - 1]
        kernel = mixing.view(*mixing.shape, *[1] * spatial)
        return pointwise(inner, kernel, bias, groups=site.layout.groups)


class ShiftedRows(Seen):
    """The fast engine of shifts on embedding tables: the direction of a row that is looked up, times its length."""

    def forward(self, indices: Tensor) -> Tensor:
        """Look directions up and give each the length of its own row."""
        attachment = self.__dict__[KEY]
        handle, site = attachment.handle, attachment.only
        factors = handle.factors[site.name]
        lengths = (factors.left.squeeze(2) * handle.sigma(site, handle.value(site))).squeeze(1)
        scaled: Tensor = functional.embedding(indices, factors.right.squeeze(1)) * lengths[indices].unsqueeze(-1)
        return scaled


@torch.no_grad()
def _decompose(site: Site) -> _Factors:
    matrix = site.layout.to_matrix(site.weight.detach())
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    return _Factors(left.contiguous(), singular, right.contiguous())
