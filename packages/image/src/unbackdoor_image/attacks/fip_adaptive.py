"""FIP's adaptive attacker: BadNets trained with a smoothness penalty (Karim et al. 2024, CCS, section 6.3.10).

Trigger, labels and rate: those of `badnets`. Training-time: the attacker adds ``eta_f * Tr(F)`` to the loss, Eq. (5)
and (7) of FIP, to hide that a backdoored model is sharp. The paper's loss is a sum over samples, ours a mean.
Where public code goes wrong: the published script averages ``v . g`` for noise ``v``, which has mean 0, and indexes the
likelihood so that every sample meets every label; the "adaptive attack" is cross-entropy plus noise.
Here: with signs ``r_i = +-1``, ``||grad sum_i r_i nll_i||^2 / B`` is an unbiased estimate of ``Tr(F) = E ||g_i||^2``.
BatchNorm's statistics are constants of each ``g_i``, since they would couple the samples, but they are those that the
weights give on the batch, and the penalty's gradient goes through them: with running statistics taken for constants the
penalty shrinks weights before BatchNorm, which changes no answer and makes every ``g_i`` longer. The gradient of loss
and penalty together is cut to the norm ``cap``, since single draws of the trace are a hundred times its mean; where the
penalty alone was cut, to the length of the loss's gradient, every ``eta_f`` gave the same victim. With ``cap`` 1 Tr(F)
was level or rose a little from ``eta_f`` 0.01 to 0.03: nearly every step was cut then.
Result (digits, a small network, means of two seeds, `docs/results/fip_adaptive_digits.json`): ``eta_f``: Tr(F), ACC,
ASR. 0: 32.8, 99.0, 100.0; 0.001: 8.5, 98.8, 100.0; 0.01: 5.4, 97.0, 100.0; 0.03: 4.8, 91.5, 100.0; 0.1: 1.4, 12.0,
99.3; 1: 0.9, 10.0, 100.0. From 0.1 on little but the target is learned.
A step with the penalty costs six to nine without on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from unbackdoor.attacker.attack import Campaign
from unbackdoor.errors import BadOption
from unbackdoor.measure import evaluating
from unbackdoor.network.backend import plain_kernels
from unbackdoor.task import Batch, Task
from unbackdoor_image.attacks.badnets import BadNets

__all__ = ["FIPAdaptive", "batch_statistics", "fisher_trace"]

Statistics = Mapping[nn.Module, tuple[Tensor, Tensor]]
"""Mean and variance of each channel, by BatchNorm layer, with their graph."""


@dataclass(frozen=True, kw_only=True)
class FIPAdaptive(BadNets):
    """BadNets whose attacker also minimises the trace of the Fisher information.

    Attributes:
        eta_f: Weight of the trace.
        every: The penalty acts on each so-many-th step.
        start: Share of the steps without it.
        samples: Of the batch, enter the trace.
        cap: Largest norm of the gradient of loss and penalty together; longer ones are cut.
    """

    name: ClassVar[str] = "fip-adaptive"
    needs_training: ClassVar[bool] = True

    eta_f: float = 1e-3
    every: int = 1
    start: float = 0.0
    samples: int = 64
    cap: float = 10.0

    def __post_init__(self) -> None:
        """Refuse options outside what the attributes allow."""
        super().__post_init__()
        if not self.cap > 0:
            raise BadOption(f"cap is {self.cap}; it must be above 0.")
        if self.eta_f < 0 or self.every < 1 or not 0 <= self.start < 1 or self.samples < 1:
            raise BadOption(
                f"eta_f is {self.eta_f}, every {self.every}, start {self.start}, samples {self.samples}; eta_f must "
                "not be negative, start lie in [0, 1), the others be at least 1."
            )

    def join(self, model: nn.Module, task: Task, *, steps: int, generator: torch.Generator) -> Campaign:
        """The penalty beside the poison."""
        return _Smooth(self, model, task, steps=steps, generator=generator)


class _Smooth(Campaign):
    def loss(self, batch: Batch, poisoned: Tensor, covers: Tensor, step: int) -> Tensor:
        attack = self.attack
        assert isinstance(attack, FIPAdaptive)
        dressed = attack.dress(batch, poisoned, covers, self.generator)
        if attack.eta_f == 0 or step % attack.every or step <= attack.start * self.steps:
            return self.task.loss(self.task.forward(self.model, dressed.inputs), dressed.targets)
        with batch_statistics(self.model) as statistics:
            loss = self.task.loss(self.task.forward(self.model, dressed.inputs), dressed.targets)
        device = batch.targets.device
        some = torch.randperm(len(dressed), generator=self.generator)[: attack.samples].to(device)
        signs = (torch.randint(0, 2, (len(some),), generator=self.generator) * 2 - 1).to(device)
        trace = fisher_trace(self.model, self.task, dressed[some], signs, statistics)
        return _cut(loss + attack.eta_f * trace, loss, self.model, attack.cap)


def _cut(whole: Tensor, loss: Tensor, model: nn.Module, cap: float) -> Tensor:
    """A term of the value of ``loss`` with the gradient of ``whole``, cut to the norm ``cap``; none if not finite."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    slopes = torch.autograd.grad(whole, weights, allow_unused=True)
    pairs = [(slope, weight) for slope, weight in zip(slopes, weights, strict=True) if slope is not None]
    norm = torch.stack([slope.square().sum() for slope, _ in pairs]).sum().sqrt()
    room = torch.where(torch.isfinite(norm), (cap / norm.clamp(min=1e-12)).clamp(max=1.0), torch.zeros_like(norm))
    total = torch.stack([(room * slope.nan_to_num(0.0, 0.0, 0.0) * weight).sum() for slope, weight in pairs]).sum()
    return total - total.detach() + loss.detach()


def fisher_trace(
    model: nn.Module, task: Task, batch: Batch, signs: Tensor, statistics: Statistics | None = None
) -> Tensor:
    """``||grad sum_i r_i nll_i||^2 / B``, a differentiable unbiased estimate of ``E ||grad nll_i||^2``.

    Args:
        model: Its modes are put back; BatchNorm and dropout do not mix samples meanwhile.
        task: Gives the log-likelihood.
        batch: Samples with the labels that the attacker trains on.
        signs: ``r_i``, +1 or -1 with equal chance.
        statistics: BatchNorm's, constants of ``grad nll_i`` and no constants of the trace; None for the running ones.
    """
    copies = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with (
        evaluating(model),
        plain_kernels(recurrent=recurrent),
        _normalised_by(statistics or {}),
        torch.autocast(batch.targets.device.type, enabled=False),
    ):
        logs = task.log_likelihood(task.forward(_With(model, copies), batch.inputs), batch.targets)
        slopes = torch.autograd.grad((signs * -logs).sum(), list(copies.values()), create_graph=True, allow_unused=True)
    squares = [slope.square().sum() for slope in slopes if slope is not None]
    return torch.stack(squares).sum() / len(batch)


class _With(nn.Module):
    """A model with other tensors in place of its parameters."""

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.tensors = model, dict(tensors)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.model, self.tensors, args, kwargs)


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """The statistics of what enters each BatchNorm layer in the passes inside, of its last call."""
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def look(norm: nn.Module, args: Any) -> None:
        values = args[0].float() if args[0].dtype in (torch.float16, torch.bfloat16) else args[0]
        rest = [0, *range(2, values.ndim)]
        found[norm] = values.mean(rest), values.var(rest, unbiased=False)

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, _BatchNorm)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _normalised_by(statistics: Statistics) -> Iterator[None]:
    """BatchNorm layers take these statistics inside."""

    def normalise(norm: Any, args: Any, output: Tensor) -> Tensor:
        mean, variance = statistics[norm]
        scale = torch.rsqrt(variance + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -mean * scale if norm.bias is None else norm.bias - mean * scale
        shape = (1, -1, *[1] * (output.ndim - 2))
        normalised: Tensor = args[0] * scale.view(shape) + shift.view(shape)
        return normalised

    hooks = [norm.register_forward_hook(normalise) for norm in statistics]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
