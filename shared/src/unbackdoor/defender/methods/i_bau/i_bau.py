"""I-BAU: unlearn the universal perturbation that hurts most, with the gradient of how it moves with the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.curvature.implicit import Solver, adjoint
from unbackdoor.defender.curvature.per_sample import twice_differentiable
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.input_space import InputSpace
from unbackdoor.defender.perturbation import Ball, universal
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.reparam import FullWeights
from unbackdoor.defender.schedule import Schedule
from unbackdoor.defender.tolerance import AccuracyTolerance, last_within
from unbackdoor.errors import BadOption
from unbackdoor.network.gradients import slopes
from unbackdoor.task import Batch, Task

__all__ = ["IBAU", "MinMax"]


@dataclass
class MinMax:
    r"""``min_theta L(delta*(theta), theta)`` with ``delta* = argmin_{||delta|| <= r} h(delta, theta)``.

    ``h = -L(f_theta(x + delta), y) + c ||delta||^2`` on a batch of its own; the outer loss has ``delta`` on a portion
    of its batch, at least one sample, and the rest clean: Eq. (1), (2) of I-BAU and the form of its public code.
    """

    model: nn.Module
    space: InputSpace
    run: Run
    draw: Iterator[Batch]
    ball: Ball
    every: int
    ascent_steps: int
    solver_steps: int
    portion: float
    penalty: float
    mixup: float
    solver: Solver = "fixed-point"
    delta: Tensor | None = None

    @property
    def task(self) -> Task:
        """The kind of problem."""
        return self.space.task

    def batch(self) -> Batch:
        """A batch for the inner problem, augmented without MixUp."""
        return self.task.augment(next(self.draw), self.run.generator, mix=0)

    def inner(self, batch: Batch, delta: Tensor) -> Tensor:
        """``h``, a scalar."""
        outputs = self.task.forward(self.model, self.space.add(batch.inputs, delta))
        return self.penalty * delta.square().sum() - self.task.loss(outputs, batch.targets)

    def __call__(self, step: int, batch: Batch) -> Iterator[Tensor]:
        """The objective's terms on a batch as drawn from the clean set."""
        if self.delta is None or step % self.every == 0:
            self.delta = universal(
                self.model,
                self.space,
                self.batch,
                self.ball,
                self.run.generator,
                steps=self.ascent_steps,
                penalty=self.penalty,
            )
        count = touched(len(batch), self.portion)
        fresh = self.task.augment(batch[slice(0, count)], self.run.generator, mix=0)
        if self.solver_steps > 0:
            with twice_differentiable(self.model):
                yield self._implicit(fresh, count / len(batch))
        outputs = self.task.forward(self.model, self.space.add(fresh.inputs, self.delta))
        yield self.task.loss(outputs, fresh.targets) * (count / len(batch))
        if count < len(batch):
            clean = self.task.augment(batch[slice(count, None)], self.run.generator, mix=self.mixup)
            rest = self.task.loss(self.task.forward(self.model, clean.inputs), clean.targets)
            yield rest * (1 - count / len(batch))

    def _implicit(self, part: Batch, share: float) -> Tensor:
        """The term of the hypergradient that comes from how ``delta*`` moves with the weights.

        Args:
            part: The very samples, as augmented, that carry the perturbation in the outer loss.
            share: Of the batch.
        """
        assert self.delta is not None
        delta = self.delta.detach().requires_grad_(True)
        outputs = self.task.forward(self.model, self.space.add(part.inputs, delta))
        (slope,) = slopes(share * self.task.loss(outputs, part.targets), [delta], what="the inputs")
        assert slope is not None
        inner = partial(self.inner, self.batch())
        radius, iterations = self.ball.radius, self.solver_steps
        return adjoint(inner, slope, self.delta, radius=radius, iterations=iterations, solver=self.solver).term()


def touched(count: int, portion: float) -> int:
    """How many of ``count`` samples carry the perturbation: ``ceil(portion count)``, never none."""
    return min(count, max(1, math.ceil(portion * count)))


_PUBLISHED = {
    "steps": 250,
    "lr": 1e-3,
    "schedule": "constant",
    "rounds": 5,
    "solver_steps": 5,
    "penalty": 1e-3,
    "levels": 1,
    "holdout": 0.0,
    "max_clean_drop": 100.0,
}


@dataclass(frozen=True, kw_only=True)
class IBAU(Purifier):
    """I-BAU (Zeng et al., ICLR 2022): adversarial unlearning by the implicit hypergradient."""

    name: ClassVar[str] = "i-bau"
    needs: ClassVar[tuple[str, ...]] = ("classes", "perturbable")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": _PUBLISHED | {"portion": 1.0},
        "authors": _PUBLISHED | {"portion": 0.01},
    }

    steps: int = option(200, "optimiser steps of all rounds together")
    batch_size: int = option(100, "samples a step, and samples of the inner problem")
    lr: float = option(1e-3, "peak learning rate")
    optimiser: Literal["sgd", "adam"] = option("adam", "sgd or adam")
    momentum: float = option(0.9, "momentum of SGD, first-moment decay of Adam")
    weight_decay: float = option(0.0, "L2 penalty inside the optimiser")
    schedule: Schedule = option("one-cycle", "learning rate over the run: one-cycle, cosine, step or constant")
    rounds: int = option(20, "how often the perturbation is sought anew")
    radius: float = option(0.4, "largest root mean square of the perturbation, in standard deviations of the inputs")
    ascent_steps: int = option(10, "steps of projected gradient ascent in each search")
    solver: Solver = option("fixed-point", "of the implicit term: fixed-point or conjugate-gradients")
    solver_steps: int = option(5, "iterations of the solver; 0 leaves the implicit term out")
    portion: float = option(0.5, "share of a batch that carries the perturbation; at least one sample always does")
    penalty: float = option(1e-3, "weight of the perturbation's squared norm in the inner problem")
    levels: int = option(4, "radii that are tried, rising to radius; the largest within the tolerance stands")
    max_clean_drop: float = option(3.0, "points of clean accuracy on the holdout that it may cost")
    mixup: float = option(0.0, "MixUp's lambda ~ Beta(mixup, mixup) of the samples without it; 0 turns MixUp off")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        if min(self.rounds, self.ascent_steps, self.levels) < 1 or self.solver_steps < 0:
            raise BadOption(
                f"rounds is {self.rounds}, ascent_steps {self.ascent_steps}, levels {self.levels}, solver_steps "
                f"{self.solver_steps}; the first three must be at least 1, the last at least 0."
            )
        if not 0 < self.portion <= 1:
            raise BadOption(f"portion is {self.portion}; the share of perturbed samples must lie in (0, 1].")
        if not 0 <= self.penalty < math.inf:
            raise BadOption(f"penalty is {self.penalty}; it must be a number of at least 0.")

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        space = InputSpace.of(task, clean)
        tuned = FullWeights(model)
        tolerance = AccuracyTolerance.of(model, task, clean, run, self.max_clean_drop) if self.levels > 1 else None
        steps, rounds = math.ceil(self.steps / self.levels), math.ceil(self.rounds / self.levels)

        def advance(level: int) -> None:
            objective = MinMax(
                model,
                space,
                run,
                clean.batches(self.batch_size, run.generator),
                Ball.of(space, clean, self.radius * level / self.levels),
                every=max(1, math.ceil(steps / rounds)),
                ascent_steps=self.ascent_steps,
                solver_steps=self.solver_steps,
                portion=self.portion,
                penalty=self.penalty,
                mixup=self.mixup,
                solver=self.solver,
            )
            finetune(
                list(tuned.parameters().values()),
                objective,
                clean,
                run,
                steps=steps,
                batch_size=self.batch_size,
                lr=self.lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                schedule=self.schedule,
                optimiser=self.optimiser,
                message=f"unlearning perturbations, radius {level} of {self.levels}",
            )

        if tolerance is None:
            advance(1)
        else:
            last_within(self.levels, advance, tuned.parameters, tolerance, model)
