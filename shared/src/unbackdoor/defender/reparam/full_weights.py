"""All trainable parameters as they are: the handle of FIP in the full parameter space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from unbackdoor.defender.reparam.attachment import substituted

__all__ = ["FullWeights"]


class FullWeights:
    """``theta`` itself, with the same face as a `Reparametrisation`, so that one objective serves both."""

    def __init__(self, model: nn.Module, *, skip: Sequence[str] = ()) -> None:
        """Take every parameter with ``requires_grad`` whose name fits no shell pattern of ``skip``."""
        self.model = model
        self.notices: list[str] = []
        self._values = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not any(fnmatchcase(name, pattern) for pattern in skip)
        }
        self._kept: dict[str, Tensor] = {}
        self._folded = False

    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return dict(self._values)

    @contextmanager
    def substituted(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Use other ``values`` inside; tied parameters change together."""
        by_identity = {id(self._values[name]): value for name, value in values.items()}
        with ExitStack() as stack:
            for module in self.model.modules():
                own = {n: by_identity[id(p)] for n, p in module._parameters.items() if id(p) in by_identity}
                if own:
                    stack.enter_context(substituted(module, own))
            yield

    def project_(self) -> None:
        """Nothing to do: weights are unconstrained."""

    def fold_(self) -> None:
        """Keep the weights as they are now."""
        self._folded = True

    def __enter__(self) -> Self:
        """Remember the weights."""
        self._folded = False
        self._kept = {name: value.detach().clone() for name, value in self._values.items()}
        return self

    @torch.no_grad()
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put the remembered weights back unless `fold_` was called."""
        if not self._folded:
            for name, value in self._values.items():
                value.copy_(self._kept[name])
        self._kept = {}
