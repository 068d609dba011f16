"""FIP's adaptive attacker: BadNets trained with a smoothness penalty (Karim et al. 2024, CCS, section 6.3.10).

Trigger, labels and rate: those of `badnets`. Training-time: the attacker adds ``eta_f * Tr(F)`` to the loss, Eq. (5) of
FIP, to hide that a backdoored model is sharp.
Where public code goes wrong: the published script averages ``v . g`` for noise ``v``, which has mean 0, and indexes the
likelihood so that every sample meets every label; the "adaptive attack" is cross-entropy plus noise.
Here: with signs ``r_i = +-1``, ``||grad sum_i r_i nll_i||^2 / B`` is an unbiased estimate of ``Tr(F) = E ||g_i||^2``.
BatchNorm runs on its running statistics in that term, since batch statistics would couple the samples; the penalty
starts after ``start`` of the steps, when these statistics mean something, and acts on every ``every``-th step. Its
gradient is cut to ``cap`` times the loss's: single draws of the trace are a hundred times its mean and would end the
training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unbackdoor.attacker.attack import Campaign
from unbackdoor.errors import BadOption
from unbackdoor.measure import evaluating
from unbackdoor.task import Batch, Task
from unbackdoor_image.attacks.badnets import BadNets

__all__ = ["FIPAdaptive", "fisher_trace"]


@dataclass(frozen=True, kw_only=True)
class FIPAdaptive(BadNets):
    """BadNets whose attacker also minimises the trace of the Fisher information.

    Attributes:
        eta_f: Weight of the trace.
        every: The penalty acts on each so-many-th step.
        start: Share of the steps without it.
        samples: Of the batch, enter the trace.
        cap: Largest norm of the penalty's gradient, in multiples of that of the loss; longer ones are cut.
    """

    name: ClassVar[str] = "fip-adaptive"
    needs_training: ClassVar[bool] = True

    eta_f: float = 1e-3
    every: int = 4
    start: float = 0.2
    samples: int = 64
    cap: float = 1.0

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
        loss = self.task.loss(self.task.forward(self.model, dressed.inputs), dressed.targets)
        if attack.eta_f == 0 or step % attack.every or step <= attack.start * self.steps:
            return loss
        device = batch.targets.device
        some = torch.randperm(len(dressed), generator=self.generator)[: attack.samples].to(device)
        signs = (torch.randint(0, 2, (len(some),), generator=self.generator) * 2 - 1).to(device)
        penalty = attack.eta_f * fisher_trace(self.model, self.task, dressed[some], signs)
        return loss + _bounded(penalty, loss, self.model, attack.cap)


def _bounded(penalty: Tensor, loss: Tensor, model: nn.Module, cap: float) -> Tensor:
    """A term of value 0 with the gradient of ``penalty``, its norm cut to ``cap`` times that of the loss's gradient."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    plain = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    extra = torch.autograd.grad(penalty, weights, allow_unused=True)

    def norm(slopes: tuple[Tensor | None, ...]) -> Tensor:
        return torch.stack([slope.square().sum() for slope in slopes if slope is not None]).sum().sqrt()

    room = (cap * norm(plain) / norm(extra).clamp(min=1e-12)).clamp(max=1.0)
    terms = [(room * slope * weight).sum() for slope, weight in zip(extra, weights, strict=True) if slope is not None]
    total = torch.stack(terms).sum()
    return total - total.detach()


def fisher_trace(model: nn.Module, task: Task, batch: Batch, signs: Tensor) -> Tensor:
    """``||grad sum_i r_i nll_i||^2 / B``, a differentiable unbiased estimate of ``E ||grad nll_i||^2``.

    Args:
        model: Its modes are put back; BatchNorm and dropout do not mix samples meanwhile.
        task: Gives the log-likelihood.
        batch: Samples with the labels that the attacker trains on.
        signs: ``r_i``, +1 or -1 with equal chance.
    """
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model), torch.autocast(batch.targets.device.type, enabled=False):
        logs = task.log_likelihood(task.forward(model, batch.inputs), batch.targets)
        slopes = torch.autograd.grad((signs * -logs).sum(), weights, create_graph=True, allow_unused=True)
    squares = [slope.square().sum() for slope in slopes if slope is not None]
    return torch.stack(squares).sum() / len(batch)
