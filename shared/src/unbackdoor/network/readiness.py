"""What a user's model is, and how it is made ready for a purification."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from unbackdoor.errors import NonFinite, NothingTrainable, UnsupportedModel
from unbackdoor.network.signature import all_tensors, broken, some

__all__ = [
    "check_usable",
    "copy_ready",
    "dense_gradients",
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
    scripted = [name for name, module in inner.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise UnsupportedModel(
            f"parts of the model are TorchScript modules: {some(scripted)}; put in the Python modules that they were "
            "scripted from."
        )
    lazy = [n for n, p in inner.named_parameters() if isinstance(p, nn.parameter.UninitializedParameter)]
    if lazy:
        raise UnsupportedModel(f"uninitialised lazy parameters: {some(lazy)}; run one forward pass first.")
    sharded = [n for n, p in inner.named_parameters() if type(p.data).__name__ in ("DTensor", "FlatParameter")]
    if sharded:
        raise UnsupportedModel(f"sharded parameters: {some(sharded)}; gather the full state dict first.")
    quantised = [name for name, module in inner.named_modules() if ".quantized" in type(module).__module__]
    quantised += [n for n, t in all_tensors(inner) if t.is_quantized]
    quantised += [n for n, p in inner.named_parameters() if not (p.is_floating_point() or p.is_complex())]
    quantised += [n for n, _ in inner.named_buffers() if n.rpartition(".")[2] in ("qweight", "qzeros")]
    if quantised:
        raise UnsupportedModel(
            f"quantised weights: {some(quantised)}; dequantise to float32, float16 or bfloat16 first, then purify."
        )
    return inner


def check_usable(model: nn.Module) -> None:
    """Refuse a model without weights, with all weights frozen, or with NaN or infinity in them.

    A buffer may be infinite: masks of attention hold minus infinity.

    Raises:
        NothingTrainable: There is no parameter with ``requires_grad``.
        UnsupportedModel: Its tensors can be in no graph.
        NonFinite: Names every tensor with NaN, and every weight with infinity.
    """
    parameters = list(model.parameters())
    if not any(p.requires_grad for p in parameters):
        state = "all parameters have requires_grad=False" if parameters else "the model has no parameters"
        raise NothingTrainable(f"{state}; set requires_grad=True on the weights that may be changed.")
    inference = [name for name, tensor in all_tensors(model) if tensor.is_inference()]
    if inference:
        raise UnsupportedModel(
            f"weights that were made under torch.inference_mode cannot be tuned: {some(inference)}. Build and load the "
            "model outside of it, or let unbackdoor.purify make a copy."
        )
    damaged = broken(model)
    if damaged:
        raise NonFinite(f"NaN or infinite values in {some(damaged)}; this checkpoint is damaged, use another.")


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
    return [f"parametrised weights were written out as plain tensors, so these keys changed: {some(changed)}."]


@contextmanager
def master_precision(model: nn.Module) -> Iterator[torch.dtype]:
    """Half-precision weights are float32 inside and are rounded back afterwards; yields the working dtype."""
    halves = {name: t.dtype for name, t in all_tensors(model) if t.dtype in _HALF}
    for name, tensor in all_tensors(model):
        if name in halves:
            tensor.data = tensor.data.float()
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} or {torch.get_default_dtype()}
    try:
        yield max(dtypes, key=lambda d: torch.finfo(d).bits)
    finally:
        for name, tensor in all_tensors(model):
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
def dense_gradients(model: nn.Module) -> Iterator[None]:
    """Embedding tables that ask for sparse gradients get dense ones inside, which every optimiser and norm takes."""
    sparse = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse]
    for table in sparse:
        table.sparse = False
    try:
        yield
    finally:
        for table in sparse:
            table.sparse = True


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
