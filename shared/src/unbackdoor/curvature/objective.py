"""FIP's objective, the same in the space of weights and in the space of spectral shifts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from unbackdoor.clean_loss import CleanLoss
from unbackdoor.curvature.fisher import fisher_diagonal, fisher_trace
from unbackdoor.curvature.per_sample import Handle, twice_differentiable
from unbackdoor.data import CleanSet
from unbackdoor.purifier import Run
from unbackdoor.task import Batch, Task

__all__ = ["FisherObjective"]


@dataclass(frozen=True, kw_only=True)
class FisherObjective:
    r"""``L(theta) + eta_F Tr(F) + eta_r / 2 sum_i diag(Fbar)_i (theta_i - thetabar_i)^2``: Eq. (8) and (9) of FIP.

    Attributes:
        trace_weight: ``eta_F``.
        trace_every: ``Tr(F)`` enters every so many steps; 1 for each step.
        trace_samples: Samples of the batch that the estimate uses; the sign estimator is unbiased for any
            number, and fewer bound the memory of the double backward pass.
        retain_weight: ``eta_r``.
        mixup: MixUp of the loss's samples; ``Tr(F)`` is taken on samples as they are.
    """

    trace_weight: float
    trace_every: int
    trace_samples: int
    retain_weight: float
    mixup: float

    def prepare(self, handle: Handle, model: nn.Module, task: Task, clean: CleanSet) -> Anchor:
        """``thetabar`` and ``diag(Fbar)``, computed once on the clean samples where ``eta_r`` is not 0."""
        start = {name: value.detach().clone() for name, value in handle.parameters().items()}
        if self.retain_weight == 0:
            return Anchor({}, start)
        return Anchor(fisher_diagonal(handle, model, task, clean), start)

    def __call__(
        self, step: int, batch: Batch, *, handle: Handle, clean_loss: CleanLoss, anchor: Anchor, run: Run
    ) -> Iterator[Tensor]:
        """The terms of the objective on one batch as drawn from the clean set, scalars.

        ``Tr(F)`` comes first and on its own, so that its double backward pass is over before the loss needs memory.
        """
        model, task = clean_loss.model, clean_loss.task
        if self.trace_weight and step % self.trace_every == 0:
            few = task.augment(batch[slice(0, self.trace_samples)], run.generator, mix=0)
            with twice_differentiable(model):
                scores = task.log_likelihood(task.forward(model, few.inputs), few.targets)
                values = list(handle.parameters().values())
                yield self.trace_weight * fisher_trace(scores, values, run.generator)
        yield clean_loss(task.augment(batch, run.generator, mix=self.mixup))
        if self.retain_weight:
            yield self.retain_weight / 2 * anchor.distance(handle.parameters())


@dataclass(frozen=True)
class Anchor:
    """``diag(Fbar)`` and ``thetabar``; an empty Fisher where the retainer is off."""

    fisher: dict[str, Tensor]
    start: dict[str, Tensor]

    def distance(self, values: dict[str, Tensor]) -> Tensor:
        """``L_r = sum_i diag(Fbar)_i (theta_i - thetabar_i)^2``, a scalar: Sec. 5 of FIP."""
        terms = [(f * (values[name] - self.start[name]).square()).sum() for name, f in self.fisher.items()]
        return sum(terms[1:], start=terms[0])
