"""One scalar per weight: the handle of adversarial weight masking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from unbackdoor.defender.reparam.attachment import Site
from unbackdoor.defender.reparam.frozen_norm import freeze_norms
from unbackdoor.defender.reparam.site import Reparametrisation, drop_head
from unbackdoor.defender.reparam.tracing import Probe

__all__ = ["WeightMask"]


class WeightMask(Reparametrisation):
    r"""Masks ``m`` in ``[0, 1]`` with ``W <- m \odot W``, element by element; BatchNorm is in eval mode."""

    def __init__(self, model: nn.Module, probe: Probe, *, skip: Sequence[str] = (), head: bool = True) -> None:
        """Make masks of ones in the shape and dtype of their weight.

        Args:
            model: In eval mode.
            probe: Runs it once.
            skip: Shell patterns of qualified parameter names to leave alone.
            head: Whether the last layer has masks; see `NeuronMask`.

        Raises:
            NothingTrainable: No site is left.
            UnreachedSite: See `Reparametrisation`.
        """
        super().__init__(model, probe, skip=skip)
        if not head:
            drop_head(self)
        self._values = {
            name: torch.ones_like(site.weight, requires_grad=True, memory_format=torch.preserve_format)
            for name, site in self.sites.items()
        }
        self._check_seen(probe)

    def effective(self, site: Site, value: Tensor) -> Tensor:
        """``m W``."""
        return site.weight * value

    def size(self) -> Tensor:
        """``||m||_1``, a scalar."""
        return sum(mask.abs().sum() for mask in self._values.values())  # type: ignore[return-value]

    @torch.no_grad()
    def project_(self) -> None:
        """Clamp every mask to ``[0, 1]``."""
        for mask in self._values.values():
            mask.clamp_(0.0, 1.0)

    @torch.no_grad()
    def fold_(self) -> None:
        """``W <- m W`` in the model's own parameters."""
        for site in self.sites.values():
            site.weight.copy_(self.effective(site, self.value(site)))

    def __enter__(self) -> Self:
        """Attach; BatchNorm in eval mode becomes a plain affine map."""
        super().__enter__()
        freeze_norms(self.model, self._swap)
        return self
