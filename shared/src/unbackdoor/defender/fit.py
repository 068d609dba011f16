"""The one training loop that all purifiers share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from unbackdoor.data import CleanSet
from unbackdoor.defender.purifier import Purifier, Run, option
from unbackdoor.defender.schedule import Schedule, learning_rate_factor
from unbackdoor.errors import BadOption, NonFinite, UnsupportedModel
from unbackdoor.network.gradients import NO_GRADIENT, slopes
from unbackdoor.task import Batch

__all__ = ["Fitted", "Objective", "finetune", "gradients"]

Objective = Callable[[int, Batch], Tensor | Iterator[Tensor]]
"""``objective(step, batch)`` gives the scalar to minimise, or its terms one after the other: the graph of each is
freed before the next is built. The batch is as drawn, not augmented."""


@dataclass(frozen=True, kw_only=True)
class Fitted(Purifier):
    """The options of a method that runs one optimisation, and that optimisation in one line.

    A method declares anew those whose defaults are its own.
    """

    steps: int = option(200, "optimiser steps; epochs overrides them")
    epochs: int | None = option(None, "passes over the samples that are tuned on, instead of steps")
    batch_size: int = option(128, "samples a step")
    lr: float = option(0.01, "peak learning rate")
    optimiser: Literal["sgd", "adam"] = option("sgd", "sgd or adam")
    momentum: float = option(0.9, "momentum of SGD, first-moment decay of Adam")
    weight_decay: float = option(0.0, "L2 penalty inside the optimiser")
    schedule: Schedule = option("one-cycle", "learning rate: one-cycle, cosine, step, exponential or constant")
    gamma: float = option(0.1, "factor of the learning rate: step, at 80 % of the run; exponential, after each epoch")
    clip: float | None = option(None, "largest norm of the whole gradient; None for no bound")

    @classmethod
    def make(cls, preset: str | None = None, **options: Any) -> Self:
        """As `Configured.make`; ``steps`` that are given stand against the ``epochs`` of a preset."""
        return super().make(preset, **({"epochs": None} if "steps" in options else {}) | options)

    def steps_for(self, clean: CleanSet) -> int:
        """Optimiser steps for so many samples."""
        if self.epochs is None:
            return self.steps
        if self.epochs < 1:
            raise BadOption(f"epochs is {self.epochs}; it must be at least 1, or None for steps.")
        return self.epochs * math.ceil(len(clean) / self.batch_size)

    def fit(
        self,
        parameters: Iterable[Tensor],
        objective: Objective,
        clean: CleanSet,
        run: Run,
        *,
        milestones: Sequence[int] = (),
        after_step: Callable[[], None] | None = None,
        message: str = "purifying",
    ) -> None:
        """`finetune` with this method's options."""
        finetune(
            list(parameters),
            objective,
            clean,
            run,
            steps=self.steps_for(clean),
            batch_size=self.batch_size,
            lr=self.lr,
            optimiser=self.optimiser,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            gamma=self.gamma,
            milestones=milestones,
            clip=self.clip,
            after_step=after_step,
            message=message,
        )


def finetune(
    parameters: Sequence[Tensor],
    objective: Objective,
    clean: CleanSet,
    run: Run,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    schedule: Schedule = "one-cycle",
    gamma: float = 0.1,
    milestones: Sequence[int] = (),
    clip: float | None = None,
    optimiser: Literal["sgd", "adam"] = "sgd",
    after_step: Callable[[], None] | None = None,
    until: Callable[[], bool] | None = None,
    message: str = "purifying",
) -> None:
    """Minimise ``objective`` over ``parameters`` (leaf tensors), in place.

    Nothing waits for the device inside the loop. A step whose gradient is not finite changes nothing; if
    most steps between two looks are of that kind, the last good values come back and ``lr`` is halved.

    Args:
        parameters: What to tune.
        objective: See `Objective`.
        clean: Where batches are drawn from, with ``run.generator``.
        run: Log and watcher.
        steps: Number of optimiser steps.
        batch_size: Samples a step.
        lr: Peak learning rate.
        momentum: Of SGD; the first-moment decay of Adam.
        weight_decay: L2 penalty inside the optimiser.
        schedule: See `learning_rate_factor`.
        gamma: Of some schedules.
        milestones: Of one schedule, in epochs.
        clip: Largest norm of the whole gradient; None for no limit.
        optimiser: ``"sgd"`` or ``"adam"``.
        after_step: Called after each step, to project.
        until: Asked after each step; the loop ends where it says so.
        message: What a progress bar says.

    Raises:
        NonFinite: The loss stays NaN or infinite although ``lr`` was halved five times.
        BadOption: ``optimiser`` is unknown, or ``clip`` is not positive.
        UnsupportedModel: No gradient reaches any of the parameters.
    """
    tuned = list(parameters)
    if clip is not None and not clip > 0:
        raise BadOption(f"clip is {clip}; it must be a positive number or None.")
    if optimiser == "sgd":
        chosen: torch.optim.Optimizer = torch.optim.SGD(tuned, lr=lr, momentum=momentum, weight_decay=weight_decay)
    elif optimiser == "adam":
        chosen = torch.optim.Adam(tuned, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)
    else:
        raise BadOption(f"no optimiser {optimiser!r}. Known: sgd, adam.")
    epoch = math.ceil(len(clean) / batch_size)
    learning_rates = torch.optim.lr_scheduler.LambdaLR(
        chosen, lambda s: learning_rate_factor(schedule, s, steps, gamma=gamma, epoch=epoch, milestones=milestones)
    )
    run.trainable = sum(value.numel() for value in tuned)
    every = max(1, steps // 20)
    good, halvings = [value.detach().clone() for value in tuned], 0
    skipped = torch.zeros((), device=tuned[0].device)
    since = skipped.clone()
    batches = clean.batches(batch_size, run.generator)
    reached: set[int] = set()
    for step in range(steps):
        loss, found = gradients(objective(step, next(batches)), tuned)
        reached |= {i for i, slope in enumerate(found) if slope is not None}
        norm = _assign(tuned, found, clip)
        broken = ~torch.isfinite(norm)
        since += broken
        rate = float(chosen.param_groups[0]["lr"])
        last = [value.detach().clone() for value in tuned]
        chosen.step()
        _undo(tuned, last, broken)
        learning_rates.step()
        if after_step is not None:
            after_step()
        ended = step + 1 == steps or (until is not None and until())
        if (step + 1) % every == 0 or ended:
            bad = int(since)
            skipped += since
            since.zero_()
            if 2 * bad > every:
                halvings += 1
                _back_off(tuned, good, chosen, learning_rates, halvings, run)
            else:
                good = [value.detach().clone() for value in tuned]
            run.record(step + 1, steps, message, loss=float(loss), gradient_norm=float(norm), lr=rate)
        if ended:
            break
    for value in tuned:
        value.grad = None
    _tell_untouched([value for i, value in enumerate(tuned) if i not in reached], run)
    if int(skipped):
        run.notice(f"{int(skipped)} of {steps} steps had a loss or gradient that was not finite and were skipped.")


def gradients(objective: Tensor | Iterator[Tensor], tuned: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
    """The value of an objective and its gradients; None where a tensor plays no part.

    Args:
        objective: A scalar, or the scalars that add up to it.
        tuned: With respect to which.

    Returns:
        The detached scalar and tensors of the shapes of ``tuned``, each with memory of its own.

    Raises:
        UnsupportedModel: No tensor has a gradient: tuning would change nothing and say nothing.
    """
    total: Tensor | None = None
    sums: list[Tensor | None] = [None] * len(tuned)
    for term in [objective] if isinstance(objective, Tensor) else objective:
        for i, slope in enumerate(slopes(term, tuned, needed=False)):
            known = sums[i]
            if slope is not None:  # autograd may give one tensor as the gradient of two parameters
                sums[i] = slope.clone() if known is None else known.add_(slope)
        total = term.detach() if total is None else total + term.detach()
    if total is None:
        raise ValueError("the objective has no term")
    if all(known is None for known in sums):
        raise UnsupportedModel(f"{NO_GRADIENT.format(what='the weights that are tuned')}.")
    return total, sums


def _tell_untouched(values: Sequence[Tensor], run: Run) -> None:
    """Name the model's weights to which no step brought a gradient."""
    known = {id(parameter): name for name, parameter in run.model.named_parameters()}
    names = [known[id(value)] for value in values if id(value) in known]
    if names:
        rest = f" and {len(names) - 6} more" if len(names) > 6 else ""
        run.notice(
            f"not tuned, since no gradient reached them (no answer uses them, or the model computes with them under "
            f"torch.no_grad): {', '.join(names[:6])}{rest}."
        )


def _assign(tuned: Sequence[Tensor], slopes: Sequence[Tensor | None], clip: float | None) -> Tensor:
    """Put the gradients in place, clipped, or zero if any of them is not finite; returns their norm."""
    for value, slope in zip(tuned, slopes, strict=True):
        value.grad = slope
    present = [slope for slope in slopes if slope is not None]
    norm = torch.nn.utils.get_total_norm(present)
    limit = torch.inf if clip is None else clip
    scale = torch.where(torch.isfinite(norm), (limit / (norm + 1e-12)).clamp(max=1.0), torch.zeros_like(norm))
    if present:
        torch._foreach_mul_(present, scale)
    for slope in present:
        slope.nan_to_num_(0.0, 0.0, 0.0)
    return norm


@torch.no_grad()
def _undo(tuned: Sequence[Tensor], last: Sequence[Tensor], broken: Tensor) -> None:
    """Bring the last values back after a broken step: momentum and decay move them even without a gradient."""
    for value, kept in zip(tuned, last, strict=True):
        value.copy_(torch.where(broken, kept, value))


@torch.no_grad()
def _back_off(
    tuned: Sequence[Tensor],
    good: Sequence[Tensor],
    chosen: torch.optim.Optimizer,
    learning_rates: torch.optim.lr_scheduler.LambdaLR,
    halvings: int,
    run: Run,
) -> None:
    if halvings > 5:
        raise NonFinite("the loss stays NaN or infinite although lr was halved five times; lower lr or check the data.")
    for value, kept in zip(tuned, good, strict=True):
        value.copy_(kept)
    chosen.state.clear()
    learning_rates.base_lrs = [base / 2 for base in learning_rates.base_lrs]
    run.notice("most steps had a loss that was not finite: the last good values came back and lr was halved.")
