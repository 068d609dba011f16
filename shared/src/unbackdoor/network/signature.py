"""What of a user's model must be the same after a purification, what its own forward moves, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from unbackdoor.errors import ModelChanged, NonFinite

__all__ = ["Kept", "Signature", "all_tensors", "broken", "buffers_kept", "some", "ties"]


@dataclass(frozen=True)
class Signature:
    """Classes, keys in order, shapes, dtypes, ties and buffers of a model."""

    classes: tuple[tuple[str, type], ...]
    tensors: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]
    ties: frozenset[tuple[str, ...]]
    buffers: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Take the signature; buffers are copied."""
        state = model.state_dict()
        return cls(
            tuple((name, type(module)) for name, module in model.named_modules()),
            tuple((n, tuple(t.shape), t.dtype) for n, t in state.items() if isinstance(t, Tensor)),
            ties(model),
            {name: buffer.detach().clone() for name, buffer in model.named_buffers()},
        )

    def check(self, model: nn.Module, *, buffers_may_change: bool) -> None:
        """Compare with the model as it is now.

        Raises:
            ModelChanged: Anything but weight values differs (and, where allowed, buffer values).
            NonFinite: A weight is no longer finite.
        """
        now = Signature.of(model)
        for what in ("classes", "tensors", "ties"):
            if getattr(now, what) != getattr(self, what):
                odd = sorted(map(str, set(getattr(now, what)) ^ set(getattr(self, what))))
                raise ModelChanged(f"the method changed the model's {what}: {some(odd)}; this is a bug, report it.")
        moved = [n for n, b in now.buffers.items() if not _same(b, self.buffers.get(n))]
        if moved and not buffers_may_change:
            raise ModelChanged(f"the method changed buffers: {some(moved)}; this is a bug, please report it.")
        damaged = broken(model)
        if damaged:
            raise NonFinite(f"the purification ended with NaN in {some(damaged)}; lower lr.")


@dataclass
class Kept:
    """A model as it was given: every tensor, which modules and tensors there were, and their further state.

    It does not go through state dicts, so neither their hooks nor entries that are no tensors are lost on the way back.
    """

    model: nn.Module
    tensors: list[tuple[Tensor, Tensor]]
    registers: dict[nn.Module, dict[str, dict[str, Any]]]
    further: list[tuple[nn.Module, Any]]
    own: set[str] = field(default_factory=set)
    """Buffers that were seen to move by the model's own forward."""

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Copy all tensors, and what else modules put into a state dict."""
        return cls(
            model,
            [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())],
            {m: {kind: dict(getattr(m, kind)) for kind in _REGISTERS} for m in model.modules()},
            [
                (module, copy.deepcopy(module.get_extra_state()))
                for module in model.modules()
                if type(module).get_extra_state is not nn.Module.get_extra_state
            ],
        )

    @torch.no_grad()
    def restore(self) -> None:
        """Bring the model back, bit for bit, whatever was done to its tensors and registers."""
        for module, registers in self.registers.items():
            for kind, entries in registers.items():
                held = getattr(module, kind)
                held.clear()
                held.update(entries)
        for tensor, value in self.tensors:
            if tensor.shape == value.shape and tensor.dtype == value.dtype:
                tensor.copy_(value)
            else:
                tensor.data = value.clone()
        for module, state in self.further:
            module.set_extra_state(state)

    def settle(self, probe: Callable[[], object], *, norms: bool) -> None:
        """Bring those buffers back that the model's own forward moves: counters, caches, running means.

        Whatever else was moved stays, for `Signature.check` to find.

        Args:
            probe: Runs the model on clean samples.
            norms: Whether a method may move BatchNorm's statistics, which then stay too.
        """
        kept = {id(tensor): value for tensor, value in self.tensors}
        moved = {name for name, where in self._places(norms).items() if self._moved(*where, kept)}
        if not moved:
            return
        if not moved <= self.own:
            self._watch(probe, kept, norms)
        for name, (module, local) in self._places(norms).items():
            if name in self.own and name in moved:
                self._put_back(module, local, kept)

    def _places(self, norms: bool) -> dict[str, tuple[nn.Module, str]]:
        """Every buffer that there is or was, by its qualified name."""
        names = {module: name for name, module in self.model.named_modules()}
        found: dict[str, tuple[nn.Module, str]] = {}
        for module, registers in self.registers.items():
            if norms and isinstance(module, _BatchNorm):
                continue
            for local in {**registers["_buffers"], **module._buffers}:
                found[f"{names.get(module, '?')}.{local}".lstrip(".")] = (module, local)
        return found

    def _given(self, module: nn.Module, local: str) -> Any:
        return self.registers[module]["_buffers"].get(local, _NONE)

    def _moved(self, module: nn.Module, local: str, kept: dict[int, Tensor]) -> bool:
        given, now = self._given(module, local), module._buffers.get(local, _NONE)
        if not isinstance(given, Tensor) or not isinstance(now, Tensor):
            return given is not now
        before = kept[id(given)]
        return now is not given or not _same(now, before.to(now.dtype) if now.is_floating_point() else before)

    @torch.no_grad()
    def _put_back(self, module: nn.Module, local: str, kept: dict[int, Tensor]) -> None:
        given = self._given(module, local)
        if given is _NONE:
            module._buffers.pop(local, None)
            return
        module._buffers[local] = given
        if isinstance(given, Tensor):
            given.copy_(kept[id(given)])

    def _watch(self, probe: Callable[[], object], kept: dict[int, Tensor], norms: bool) -> None:
        """Find out which buffers a run moves, from how they were given; they are as they are now again afterwards."""
        places = self._places(norms)
        now: dict[str, Any] = {name: m._buffers.get(local, _NONE) for name, (m, local) in places.items()}
        values = {name: b.detach().clone() for name, b in now.items() if isinstance(b, Tensor)}
        for module, local in places.values():
            self._put_back(module, local, kept)
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                probe()
        self.own |= {name for name, where in self._places(norms).items() if self._moved(*where, kept)}
        with torch.no_grad():
            for name, (module, local) in places.items():
                if now[name] is _NONE:
                    module._buffers.pop(local, None)
                    continue
                held = module._buffers[local] = now[name]
                if isinstance(held, Tensor):
                    held.copy_(values[name])


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Whatever the model's own forward moves inside, its buffers are afterwards as they were."""
    own = [module for module in model.modules() if isinstance(module._buffers, dict)]  # TorchScript's are no dictionary
    registers = [(module, dict(module._buffers)) for module in own]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, entries in registers:
            module._buffers.clear()
            module._buffers.update(entries)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)


_REGISTERS = ("_parameters", "_buffers", "_modules")
_NONE = object()


def all_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer itself, by name: what a state dict shows of them may be copies."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def broken(model: nn.Module) -> list[str]:
    """Names of tensors with NaN, and of weights and running statistics with infinite values.

    Other buffers may hold those: masks of attention do.
    """
    weights = {id(parameter) for parameter in model.parameters()}
    weights |= {id(b) for module in model.modules() if isinstance(module, _NormBase) for b in module.buffers(False)}
    return [
        name
        for name, tensor in all_tensors(model)
        if tensor.is_floating_point()
        and bool((~torch.isfinite(tensor)).any() if id(tensor) in weights else torch.isnan(tensor).any())
    ]


def ties(model: nn.Module) -> frozenset[tuple[str, ...]]:
    """Groups of parameter names that share one tensor."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return frozenset(tuple(names) for names in groups.values() if len(names) > 1)


def some(names: list[str], limit: int = 8) -> str:
    """The first few of ``names``, for a message."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _same(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.shape != other.shape:
        return False
    alike = one == other
    if one.is_floating_point():
        alike |= one.isnan() & other.isnan()
    return bool(alike.all())
