"""What happens around each call of a user's model: its inputs stay as they were, and what it raises has a place."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unbackdoor.errors import ForwardFailed, UnbackdoorError, UnsupportedModel
from unbackdoor.task import Batch
from unbackdoor.tree import leaves, tree_map

__all__ = ["Guard", "failure", "guard_of", "guarded", "plain"]

_MEMORY = ("can't allocate memory", "out of memory")


@dataclass
class Guard:
    """Keeps the tensors that a model is called with as they are.

    The first call of each kind gets copies; if the model wrote into them, all later ones do too. Else calls get the
    tensors themselves, and a later change of them is an error.
    """

    active: bool = True
    put: bool = False
    answered: bool = False
    """Whether it is settled which of the model's outputs are the logits (`unbackdoor.network.answers`)."""
    writes: dict[Any, bool] = field(default_factory=dict)
    pending: list[Any] = field(default_factory=list)

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        """A copy of the model has the same guard, which ends with it."""
        return self

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Hand out copies where that is needed."""
        if not self.active:
            return None
        given = leaves((args, kwargs))
        mapped = any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in given)
        key = (torch.is_grad_enabled(), tuple((t.dtype, t.ndim, t.requires_grad) for t in given))
        writes = any(self.writes.values()) if mapped else self.writes.get(key)
        if any(t.is_inference() for t in given):
            writes = True
        if writes is False:
            self.pending.append(None if mapped else [(t, t._version) for t in given])
            return None
        copies: tuple[Any, Any] = tree_map(torch.clone, (args, kwargs))
        self.pending.append((key, given, leaves(copies)) if writes is None else None)
        return copies

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Look whether the call wrote into what it got."""
        if not self.active or not self.pending:
            return
        entry = self.pending.pop()
        if isinstance(entry, tuple):
            key, given, copies = entry
            self.writes[key] = not all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))
        elif entry is not None and any(t._version != version for t, version in entry):
            raise UnsupportedModel(
                f"{type(module).__name__} writes into its input in some calls and not in others; let its forward work "
                "on a copy (x = x.clone())."
            )


def guard_of(model: nn.Module) -> Guard | None:
    """The guard that is on ``model`` now."""
    hooks = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
    return next((guard for guard in hooks if isinstance(guard, Guard) and guard.active), None)


class guarded:  # noqa: N801 - used as a function
    """Inside, calls of ``model`` leave their inputs alone, and what its forward raises becomes one error of ours.

    Raises:
        ForwardFailed: Names the innermost module in which something was raised, and what.
    """

    def __init__(self, model: nn.Module) -> None:
        """For ``model``; where it has a guard already, that one goes on."""
        self.model = model
        self.hooks: list[RemovableHandle] = []

    def __enter__(self) -> Guard:
        """Put the guard on."""
        self.guard = guard_of(self.model) or Guard()
        if not self.guard.put:
            self.guard.put = True
            self.hooks = [
                self.model.register_forward_pre_hook(self.guard.before, prepend=True, with_kwargs=True),
                self.model.register_forward_hook(self.guard.after, with_kwargs=True, always_call=True),
            ]
        return self.guard

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Take it off, and say what happened in the words of this library."""
        if not self.hooks:
            return
        self.guard.active = False
        for hook in self.hooks:
            hook.remove()
        if isinstance(error, Exception) and not isinstance(error, UnbackdoorError):
            text = failure(error, self.model)
            if text is not None:
                raise ForwardFailed(f"the model's forward failed: {text}.") from error


def failure(error: BaseException, model: nn.Module) -> str | None:
    """What was raised and in which module of ``model``; None where none of them took part."""
    place = _place(error.__traceback__, model)
    if place is None:
        return None
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in said for text in _MEMORY):
        return f"{said}, in {place}; there is too little memory: lower batch_size or give fewer samples"
    return f"{said}, in {place}"


def _place(trace: TracebackType | None, model: nn.Module) -> str | None:
    names = {id(module): name for name, module in model.named_modules()}
    place = None
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            name = names.get(id(module))
            kind = type(module).__name__
            place = f"{name!r} ({kind})" if name else f"the model itself ({kind})" if name == "" else kind
        trace = trace.tb_next
    return place


def plain(samples: Batch) -> Batch:
    """The same samples; tensors made under ``torch.inference_mode``, which no graph can hold, are copied."""
    return replace(samples, inputs=tree_map(_plain, samples.inputs), targets=tree_map(_plain, samples.targets))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor
