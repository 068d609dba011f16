"""What a user's model is, and what of it must still be true after a purification."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from unbackdoor.errors import ModelChanged, NonFinite, NothingTrainable, UnsupportedModel

__all__ = [
    "Signature",
    "check_usable",
    "copy_ready",
    "differentiable_recurrence",
    "fast_layout",
    "inner_model",
    "master_precision",
    "materialise",
]

_HALF = (torch.float16, torch.bfloat16)
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def inner_model(model: Any) -> nn.Module:
    """The module inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel`` wrappers.

    Raises:
        UnsupportedModel: ``model`` is no module, is scripted, lazy, quantised or sharded.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModel(
            f"model is a {type(model).__name__}; give an nn.Module with its weights loaded (unbackdoor.load does that)."
        )
    inner: nn.Module = model
    while True:
        wrapped = inner.module if isinstance(inner, _PARALLEL) else getattr(inner, "_orig_mod", None)
        if not isinstance(wrapped, nn.Module):
            break
        inner = wrapped
    if isinstance(inner, torch.jit.ScriptModule):
        raise UnsupportedModel("model is a TorchScript module; give the Python module that it was scripted from.")
    lazy = [n for n, p in inner.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise UnsupportedModel(f"uninitialised lazy parameters: {_some(lazy)}; run one forward pass first.")
    sharded = [n for n, p in inner.named_parameters() if type(p.data).__name__ in ("DTensor", "FlatParameter")]
    if sharded:
        raise UnsupportedModel(f"sharded parameters: {_some(sharded)}; gather the full state dict first.")
    quantised = [name for name, module in inner.named_modules() if ".quantized" in type(module).__module__]
    quantised += [n for n, t in _tensors(inner) if t.is_quantized]
    quantised += [n for n, p in inner.named_parameters() if not (p.is_floating_point() or p.is_complex())]
    quantised += [n for n, _ in inner.named_buffers() if n.rpartition(".")[2] in ("qweight", "qzeros")]
    if quantised:
        raise UnsupportedModel(
            f"quantised weights: {_some(quantised)}; dequantise to float32, float16 or bfloat16 first, then purify."
        )
    return inner


def check_usable(model: nn.Module) -> None:
    """Refuse a model without weights, with all weights frozen, or with NaN or infinity in them.

    Raises:
        NothingTrainable: There is no parameter with ``requires_grad``.
        NonFinite: Names every tensor with NaN or infinity.
    """
    parameters = list(model.parameters())
    if not any(p.requires_grad for p in parameters):
        state = "all parameters have requires_grad=False" if parameters else "the model has no parameters"
        raise NothingTrainable(f"{state}; set requires_grad=True on the weights that may be changed.")
    broken = [n for n, t in _tensors(model) if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        raise NonFinite(f"NaN or infinite values in {_some(broken)}; this checkpoint is damaged, use another.")


def copy_ready(model: nn.Module) -> None:
    """Let ``deepcopy`` pass: old-style weight norm caches a tensor with history, recomputed at each forward."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(module)[name] = value.detach()


def materialise(model: nn.Module) -> list[str]:
    """Write parametrised and pruned weights out as plain ones, in place, and say which.

    A mask or a shift on ``weight`` is undone by weight norm, spectral norm or a pruning mask that
    recomputes it at each forward; such modules' keys change, so the caller is told.
    """
    changed: list[str] = []
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            cls = type(module)  # a copy of a model shares this class, and removal deletes attributes of it
            own = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
            module.__class__ = type(cls.__name__, cls.__bases__, own)
            module.parametrizations.eval()  # no power iteration on the way
            for tensor in list(module.parametrizations):
                parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
                changed.append(f"{name}.{tensor}")
        for hook in list(module._forward_pre_hooks.values()):
            tensor = getattr(hook, "_tensor_name", None) or getattr(hook, "name", None)
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, tensor)
            elif type(hook).__name__ == "WeightNorm":
                nn.utils.remove_weight_norm(module, tensor)  # type: ignore[arg-type]
            elif type(hook).__name__ == "SpectralNorm":
                nn.utils.remove_spectral_norm(module, tensor)  # type: ignore[arg-type]
            else:
                continue
            changed.append(f"{name}.{tensor}")
    if not changed:
        return []
    return [f"parametrised weights were written out as plain tensors, so these keys changed: {_some(changed)}."]


@contextmanager
def master_precision(model: nn.Module) -> Iterator[torch.dtype]:
    """Half-precision weights are float32 inside and are rounded back afterwards; yields the working dtype."""
    halves = {name: t.dtype for name, t in _tensors(model) if t.dtype in _HALF}
    for name, tensor in _tensors(model):
        if name in halves:
            tensor.data = tensor.data.float()
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} or {torch.get_default_dtype()}
    try:
        yield max(dtypes, key=lambda d: torch.finfo(d).bits)
    finally:
        for name, tensor in _tensors(model):
            if name in halves:
                tensor.data = tensor.data.to(halves[name])


@contextmanager
def fast_layout(model: nn.Module) -> Iterator[None]:
    """Weights of 2-D convolutions are channels_last inside, which CPUs and tensor cores run much faster.

    Strides, like values, belong to the user: weights are contiguous again afterwards where they were.
    """
    kernels = [p for p in model.parameters() if p.ndim == 4 and p.is_contiguous()]
    for kernel in kernels:
        kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for kernel in kernels:
            kernel.data = kernel.data.contiguous()


@contextmanager
def differentiable_recurrence(model: nn.Module) -> Iterator[None]:
    """Recurrent layers in eval mode can be differentiated inside, on every device.

    cuDNN's kernels have a backward pass in train mode alone. In train mode without dropout between layers they compute
    what they do in eval mode, so each call that needs a gradient is made so; modes and dropout are then as before.
    Weights that a reparametrisation puts in never lie in one chunk, of which cuDNN's kernel would warn.
    """
    changed: dict[nn.RNNBase, float] = {}

    def before(layer: nn.Module, inputs: Any) -> None:
        if isinstance(layer, nn.RNNBase) and not layer.training and torch.is_grad_enabled() and _on_cudnn(layer):
            changed[layer] = layer.dropout
            layer.training, layer.dropout = True, 0.0

    def after(layer: nn.Module, inputs: Any, outputs: Any) -> None:
        if isinstance(layer, nn.RNNBase) and layer in changed:
            layer.training, layer.dropout = False, changed.pop(layer)

    handles = []
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            handles += [
                module.register_forward_pre_hook(before),
                module.register_forward_hook(after, always_call=True),
            ]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module in model.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # a copied model's weights lie apart


def _on_cudnn(layer: nn.Module) -> bool:
    return next(layer.parameters()).is_cuda and torch.backends.cudnn.enabled


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
                raise ModelChanged(f"the method changed the model's {what}: {_some(odd)}; this is a bug, report it.")
        moved = [n for n, b in now.buffers.items() if not torch.equal(b, self.buffers[n])]
        if moved and not buffers_may_change:
            raise ModelChanged(f"the method changed buffers: {_some(moved)}; this is a bug, please report it.")
        broken = [n for n, t in _tensors(model) if t.is_floating_point() and not bool(torch.isfinite(t).all())]
        if broken:
            raise NonFinite(f"the purification ended with NaN in {_some(broken)}; lower lr.")


def ties(model: nn.Module) -> frozenset[tuple[str, ...]]:
    """Groups of parameter names that share one tensor."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return frozenset(tuple(names) for names in groups.values() if len(names) > 1)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _some(names: list[str], limit: int = 8) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
