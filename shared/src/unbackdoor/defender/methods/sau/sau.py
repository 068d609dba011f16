"""SAU: unlearn the inputs on which the tuned model and the given one are wrong in the same way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from unbackdoor.data import CleanSet
from unbackdoor.defender.fit import finetune
from unbackdoor.defender.input_space import InputSpace
from unbackdoor.defender.perturbation import Ball, ascend
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.reparam import FullWeights
from unbackdoor.defender.schedule import Schedule
from unbackdoor.errors import BadOption
from unbackdoor.task import Batch, Task
from unbackdoor.tree import Tree

__all__ = ["SAU", "SharedExamples", "divergence", "other_answers"]


def divergence(first: Tensor, second: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence of two distributions, in nats: ``(KL(p || m) + KL(q || m)) / 2``, ``m = (p + q) / 2``.

    Args:
        first: ``log p``, shape ``(batch, classes)``.
        second: ``log q``, of the same shape.

    Returns:
        Shape ``(batch,)``, between 0 (equal) and log 2 (nothing in common).
    """
    middle = torch.logaddexp(first, second) - math.log(2)
    terms: Tensor = 0.5 * (first.exp() * (first - middle) + second.exp() * (second - middle))
    return terms.sum(1)


def other_answers(logs: Tensor, classes: Tensor) -> Tensor:
    """``log(1 - p_k)`` of one class ``k`` a sample, as the sum over all others, exact where ``p_k`` is nearly 1.

    ``logs`` are ``log p``, shape ``(batch, classes)``, and ``classes`` the ``k``, int64 of shape ``(batch,)``.
    """
    ruled_out = torch.zeros_like(logs, dtype=torch.bool).scatter(1, classes.unsqueeze(1), True)
    return logs.masked_fill(ruled_out, -torch.inf).logsumexp(1)


@dataclass(frozen=True)
class SharedExamples:
    """Both levels of SAU: perturbations that make two models err alike, and the loss that unlearns them.

    Attributes:
        model: The tuned one, in eval mode.
        weights: Its parameters.
        given: What they were, by name: with them it is the given model.
        space: Puts perturbations into inputs; has the task.
        ball: Of one sample's perturbation.
        run: Its generator augments and draws starts.
        ascent_steps: Of the search.
        adversarial: ``lambda_3``; likewise ``shared``, ``clean`` and ``unlearn`` for ``lambda_4, lambda_1, lambda_2``.
        mixup: Of the clean inputs.
    """

    model: nn.Module
    weights: FullWeights
    given: Mapping[str, Tensor]
    space: InputSpace
    ball: Ball
    run: Run
    ascent_steps: int
    adversarial: float = 0.01
    shared: float = 1.0
    clean: float = 1.0
    unlearn: float = 1.0
    mixup: float = 0.0

    def answers(self, inputs: Tree) -> Tensor:
        """Log probabilities of the classes, shape ``(batch, classes)``."""
        logits: Tensor = self.space.task.forward(self.model, inputs)
        return logits.log_softmax(1)

    def answers_before(self, inputs: Tree) -> Tensor:
        """Those of the given model."""
        with self.weights.substituted(self.given):
            return self.answers(inputs)

    def gain(self, batch: Batch, delta: Tensor) -> Tensor:
        """What the search maximises: ``a (l(f) + l(f_0)) / 2 - s JS(f, f_0)`` at ``x + delta``, a mean over samples.

        A model's loss counts only where it still answers rightly, the divergence only where the two are not yet wrong
        in the same way: what has been reached is not pushed further.
        """
        inputs, labels = self.space.add(batch.inputs, delta), batch.targets
        ours, theirs = self.answers(inputs), self.answers_before(inputs)
        said, said_before = ours.argmax(1), theirs.argmax(1)
        reached = (said == said_before) & (said != labels)
        total = -self.shared * torch.where(reached, 0.0, divergence(ours, theirs))
        for logs, answer in ((ours, said), (theirs, said_before)):
            loss = -logs.gather(1, labels.unsqueeze(1)).squeeze(1)
            total = total + self.adversarial / 2 * torch.where(answer == labels, loss, 0.0)
        return total.mean()

    def search(self, batch: Batch) -> Tensor:
        """A perturbation for each sample, shape ``(batch, *one input)``."""
        start = self.ball.draw(self.space.zeros(len(batch)), self.run.generator)
        return ascend(lambda delta: self.gain(batch, delta), start, self.ball, steps=self.ascent_steps)

    def unlearning(self, batch: Batch, delta: Tensor) -> Tensor:
        """``-mean_i [k_i != y_i] log(1 - f(x_i + delta_i)_{k_i})``, where ``k_i`` is the given model's answer there."""
        inputs = self.space.add(batch.inputs, delta)
        with torch.no_grad():
            wrong = self.answers_before(inputs).argmax(1)
        lost = -other_answers(self.answers(inputs), wrong)
        return torch.where(wrong != batch.targets, lost, 0.0).mean()

    def __call__(self, step: int, batch: Batch) -> Iterator[Tensor]:
        """The objective's terms on a batch as drawn from the clean set."""
        task = self.space.task
        fresh = task.augment(batch, self.run.generator, mix=0)
        yield self.unlearn * self.unlearning(fresh, self.search(fresh))
        if self.mixup > 0:
            fresh = task.augment(batch, self.run.generator, mix=self.mixup)
        yield self.clean * task.loss(task.forward(self.model, fresh.inputs), fresh.targets)


@dataclass(frozen=True, kw_only=True)
class SAU(Purifier):
    """SAU (Wei et al., NeurIPS 2023): adversarial unlearning of what misleads the given model in the same way."""

    name: ClassVar[str] = "sau"
    needs: ClassVar[tuple[str, ...]] = ("classes", "perturbable", "one-class")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "steps": 1000,
            "batch_size": 256,
            "lr": 1e-4,
            "schedule": "cosine",
        },
    }

    steps: int = option(200, "optimiser steps")
    batch_size: int = option(64, "samples a step")
    lr: float = option(1e-3, "peak learning rate")
    optimiser: Literal["sgd", "adam"] = option("adam", "sgd or adam")
    momentum: float = option(0.9, "momentum of SGD, first-moment decay of Adam")
    weight_decay: float = option(0.0, "L2 penalty inside the optimiser")
    schedule: Schedule = option("one-cycle", "learning rate over the run: one-cycle, cosine, step or constant")
    radius: float = option(0.8, "largest change of one value in a sample, in standard deviations of the inputs")
    ascent_steps: int = option(5, "steps of projected gradient ascent for each batch")
    adversarial: float = option(0.01, "weight of the two models' losses in the search")
    shared: float = option(1.0, "weight of the likeness of their answers in the search")
    clean_weight: float = option(1.0, "weight of the loss on clean inputs")
    unlearn: float = option(1.0, "weight of the loss on shared adversarial examples")
    mixup: float = option(0.0, "MixUp's lambda ~ Beta(mixup, mixup) of the clean inputs; 0 turns MixUp off")

    def __post_init__(self) -> None:
        """Refuse options outside their range."""
        if self.ascent_steps < 1:
            raise BadOption(f"ascent_steps is {self.ascent_steps}; the search takes at least 1 step.")
        for name in ("adversarial", "shared", "clean_weight", "unlearn"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadOption(f"{name} is {getattr(self, name)}; a weight must be a number of at least 0.")

    def _purify(self, model: nn.Module, clean: CleanSet, task: Task, run: Run) -> None:
        space = InputSpace.of(task, clean)
        weights = FullWeights(model)
        tuned = weights.parameters()
        objective = SharedExamples(
            model,
            weights,
            {name: value.detach().clone() for name, value in tuned.items()},
            space,
            Ball.of(space, clean, self.radius, "linf"),
            run,
            ascent_steps=self.ascent_steps,
            adversarial=self.adversarial,
            shared=self.shared,
            clean=self.clean_weight,
            unlearn=self.unlearn,
            mixup=self.mixup,
        )
        finetune(
            list(tuned.values()),
            objective,
            clean,
            run,
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            optimiser=self.optimiser,
            message="unlearning shared adversarial examples",
        )
