"""A copy of a user's model that has nothing of the original in it, compiled or patched as that may be."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from unbackdoor.errors import UnsupportedModel
from unbackdoor.network.readiness import copy_ready, inner_model

__all__ = ["copied", "eager"]

Model = TypeVar("Model", bound=nn.Module)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_COMPILED = "_torchdynamo_orig_callable"
_DEEP = 6


def copied(model: Model) -> tuple[Model, list[str]]:
    """A copy that computes with its own weights alone, and notices on what of it is no longer compiled.

    A forward that was compiled on the instance (``model.forward = torch.compile(model.forward)``) is bound to the
    original, and so would the copy's be: it gets the plain one.

    Raises:
        UnsupportedModel: The model cannot be copied, or a function put into it (a patched forward, a hook) holds on to
            modules of the original.
    """
    original = inner_model(model)
    with torch.inference_mode(False):
        copy_ready(model)
        try:
            made = copy.deepcopy(model)
        except Exception as error:
            raise UnsupportedModel(
                f"the model cannot be copied ({type(error).__name__}: {error}); take off what cannot be, or purify it "
                "in place with Purifier.purify(model, clean, task)."
            ) from error
    theirs = {id(module) for module in original.modules()}
    compiled = []
    for name, module in inner_model(made).named_modules():
        own = vars(module).get("forward")
        if own is None or _wraps(module):
            continue
        if hasattr(own, _COMPILED):
            _uncompile(module, own)
            compiled.append(name or "the model itself")
    _check_apart(inner_model(made), theirs)
    if not compiled:
        return made, []
    return made, [f"forward was compiled on the instance and is not in the purified model: {', '.join(compiled)}."]


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """What is compiled in ``model``, wholly or in part, is run as it was written inside.

    Compiled code is bound to the weights and classes that it was made for; a handle changes both.
    """
    compiled = any(
        _wraps(module)
        or hasattr(vars(module).get("forward"), _COMPILED)
        or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    if not compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _wraps(module: nn.Module) -> bool:
    """Whether it is the wrapper that ``torch.compile(module)`` gives."""
    return "_orig_mod" in module._modules


def _uncompile(module: nn.Module, own: Any) -> None:
    while hasattr(own, _COMPILED):
        own = getattr(own, _COMPILED)
    if isinstance(own, types.MethodType) and isinstance(own.__self__, nn.Module):
        if own.__func__ is type(module).forward:
            del vars(module)["forward"]
            return
        own = types.MethodType(own.__func__, module)
    vars(module)["forward"] = own


def _check_apart(made: nn.Module, theirs: set[int]) -> None:
    """Refuse functions in the copy that compute with the original's modules.

    Raises:
        UnsupportedModel: Names the modules.
    """
    odd = []
    for name, module in made.named_modules():
        functions = [vars(module).get("forward")] if not _wraps(module) else []
        functions += [hook for kind in _HOOKS for hook in getattr(module, kind, {}).values()]
        if any(_holds(function, theirs, _DEEP) for function in functions):
            odd.append(name or "the model itself")
    if odd:
        raise UnsupportedModel(
            f"forward or a hook was replaced on the instance by a function that holds the original model: "
            f"{', '.join(odd)}. A copy would go on computing with the original's weights: make it a method of a class, "
            "or purify in place with Purifier.purify(model, clean, task)."
        )


def _holds(value: Any, theirs: set[int], depth: int) -> bool:
    if depth == 0 or value is None:
        return False
    if isinstance(value, nn.Module):
        return id(value) in theirs
    inside: list[Any] = []
    if isinstance(value, types.MethodType):
        inside = [value.__self__, value.__func__]
    elif isinstance(value, functools.partial):
        inside = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, types.FunctionType):
        inside = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        inside += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    elif isinstance(value, list | tuple):
        inside = list(value)
    elif isinstance(value, dict):
        inside = list(value.values())
    return any(_holds(part, theirs, depth - 1) for part in inside)


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # an empty cell
        return False
