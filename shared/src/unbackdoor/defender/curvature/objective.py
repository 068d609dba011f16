"""FIP's objective, the same in the space of weights and in the space of spectral shifts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.curvature.fisher import fisher_diagonal, fisher_trace
from unbackdoor.defender.curvature.per_sample import Handle, twice_differentiable
from unbackdoor.defender.purifier import Run
from unbackdoor.task import Batch, Task

__all__ = ["FisherObjective"]


@dataclass(frozen=True, kw_only=True)
class FisherObjective:
    r"""``L(theta) + eta_F Tr(F) + eta_r / 2 sum_i diag(Fbar)_i (theta_i - thetabar_i)^2``: Eq. (8) and (9) of FIP.

    Attributes:
        trace_weight: ``eta_F``.
        trace_every: ``Tr(F)`` enters every so many steps; 1 for each step.
        trace_samples: Samples that the estimate uses; the sign estimator is unbiased for any
            number, and fewer bound the memory of the double backward pass. They are drawn for it and not mixed.
        retain_weight: ``eta_r``.
    """

    trace_weight: float
    trace_every: int
    trace_samples: int
    retain_weight: float

    def prepare(self, handle: Handle, model: nn.Module, task: Task, clean: CleanSet, run: Run) -> Anchor:
        """``thetabar``, and ``diag(Fbar)`` computed once on the clean samples where ``eta_r`` is not 0."""
        start = {name: value.detach().clone() for name, value in handle.parameters().items()}
        fisher = fisher_diagonal(handle, model, task, clean) if self.retain_weight else {}
        plain = clean.batches(self.trace_samples, run.generator)
        return Anchor(handle, model, task, run, plain, fisher, start)

    def __call__(self, step: int, batch: Batch, *, loss: Callable[[Batch], Tensor], anchor: Anchor) -> Iterator[Tensor]:
        """The terms of the objective, scalars; ``loss`` is that of ``batch``.

        ``Tr(F)`` comes first and on its own, so that its double backward pass is over before the loss needs memory.
        """
        if self.trace_weight and step % self.trace_every == 0:
            with twice_differentiable(anchor.model):
                yield self.trace_weight * anchor.trace()
        yield loss(batch)
        if self.retain_weight:
            yield self.retain_weight / 2 * anchor.distance()


@dataclass(frozen=True)
class Anchor:
    """What the objective needs beside the loss: ``diag(Fbar)`` and ``thetabar`` (empty where unused), plain samples."""

    handle: Handle
    model: nn.Module
    task: Task
    run: Run
    plain: Iterator[Batch]
    fisher: dict[str, Tensor]
    start: dict[str, Tensor]

    def trace(self) -> Tensor:
        """An unbiased estimate of ``Tr(F)`` on clean samples, augmented but not mixed; a scalar."""
        few = self.task.augment(next(self.plain), self.run.generator, mix=0)
        scores = self.task.log_likelihood(self.task.forward(self.model, few.inputs), few.targets)
        return fisher_trace(scores, list(self.handle.parameters().values()), self.run.generator)

    def distance(self) -> Tensor:
        """``L_r = sum_i diag(Fbar)_i (theta_i - thetabar_i)^2``, a scalar: Sec. 5 of FIP."""
        values = self.handle.parameters()
        terms = [(f * (values[name] - self.start[name]).square()).sum() for name, f in self.fisher.items()]
        return sum(terms[1:], start=terms[0])
