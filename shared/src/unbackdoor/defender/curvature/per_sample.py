"""Gradients of every sample's own log-likelihood, which the mean over a batch hides."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from unbackdoor.errors import UnsupportedModel
from unbackdoor.network.backend import plain_kernels
from unbackdoor.network.gradients import slopes
from unbackdoor.task import Batch, Task
from unbackdoor.tree import tree_map

_log = logging.getLogger(__name__)

__all__ = ["Handle", "per_sample_gradients", "twice_differentiable"]


class Handle(Protocol):
    """What curvature needs of a `Reparametrisation` or of `FullWeights`."""

    def parameters(self) -> dict[str, Tensor]:
        """The tuned values by name."""

    def substituted(self, values: Mapping[str, Tensor]) -> Any:
        """A context in which other values are used."""

    def project_(self) -> None:
        """Bring the values back to where they may lie, after a step."""


def per_sample_gradients(handle: Handle, model: nn.Module, task: Task, batch: Batch) -> dict[str, Tensor]:
    r"""``g_n = d log p(y_n | x_n) / d theta`` for every sample ``n``, Eq. (6) of FIP.

    ``torch.func`` maps the gradient over the batch; where it cannot (fused recurrent kernels, data-dependent branches,
    a forward that leaves torch) samples are differentiated one at a time instead, which gives the same numbers.

    Args:
        handle: Attached; its values are the parameters.
        model: In eval mode, so that samples do not mix.
        task: Gives the log-likelihood.
        batch: ``B`` samples.

    Returns:
        For each name a tensor of shape ``(B, *value.shape)``.

    Raises:
        UnsupportedModel: BatchNorm uses the statistics of the batch, so that samples have no gradients of their own.
    """
    _refuse_mixing(model)
    values = {name: value.detach() for name, value in handle.parameters().items()}

    def log_likelihood(point: dict[str, Tensor], inputs: Any, targets: Any) -> Tensor:
        one = Batch(tree_map(lambda t: t.unsqueeze(0), inputs), tree_map(lambda t: t.unsqueeze(0), targets))
        with handle.substituted(point):
            return task.log_likelihood(task.forward(model, one.inputs), one.targets).sum()

    gradient = torch.func.grad(log_likelihood)
    with twice_differentiable(model):
        if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
            try:
                mapped: dict[str, Tensor] = torch.func.vmap(gradient, in_dims=(None, 0, 0), randomness="different")(
                    values, batch.inputs, batch.targets
                )
                return {name: g.detach() for name, g in mapped.items()}
            except Exception as error:  # noqa: BLE001 - a user's forward may do what torch.func cannot follow
                _log.debug("samples are differentiated one at a time: %s", error)
        rows = [_single(handle, model, task, batch[slice(i, i + 1)]) for i in range(len(batch))]
    return {name: torch.stack([row[name] for row in rows]) for name in values}


def _refuse_mixing(model: nn.Module) -> None:
    norms = [(n, m) for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
    mixing = [name for name, norm in norms if norm.training or norm.running_mean is None]
    if mixing:
        raise UnsupportedModel(
            f"BatchNorm layers take their statistics from the batch, so samples mix: {', '.join(mixing[:8])}. "
            "Call model.eval() first; layers without running statistics cannot be used here."
        )


def _single(handle: Handle, model: nn.Module, task: Task, one: Batch) -> dict[str, Tensor]:
    values = {name: value.detach().requires_grad_(True) for name, value in handle.parameters().items()}
    with handle.substituted(values):
        total = task.log_likelihood(task.forward(model, one.inputs), one.targets).sum()
    gradients = slopes(total, list(values.values()), needed=False)
    return {
        name: torch.zeros_like(value) if g is None else g
        for (name, value), g in zip(values.items(), gradients, strict=True)
    }


class _PlainHardSigmoid(TorchFunctionMode):
    """``relu6(x + 3) / 6`` in place of the fused kernel of MobileNetV3, which has no second derivative."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (functional.hardsigmoid, torch._C._nn.hardsigmoid):
            return functional.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Kernels that can be differentiated twice inside: plain attention and hard sigmoid, no fused recurrent layers."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with plain_kernels(recurrent=recurrent), _PlainHardSigmoid():
        yield
